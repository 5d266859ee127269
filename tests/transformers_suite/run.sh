#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run Transformers' own common tests against SViT.
#
#     tests/transformers_suite/run.sh VENV_DIR [pytest arguments]
#
# VENV_DIR is an environment with this package and its test dependencies. The test files of exactly the Transformers
# installed there come from that version's source distribution; they are kept inside VENV_DIR, so that only the first
# run needs a network, and nothing of them is ever committed.
set -euo pipefail

venv=$(cd "${1:?usage: run.sh VENV_DIR [pytest arguments]}" && pwd)
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$venv/bin/python"
version=$("$python" -c 'from importlib.metadata import version; print(version("transformers"))')
upstream="$venv/transformers-tests/$version"

if [ -d "$upstream" ]; then
    echo "transformers $version: its test files are in $upstream"
else
    echo "transformers $version: fetching its source distribution for the test files"
    work=$(mktemp -d "$venv/transformers-tests.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers \
        --dest "$work" "transformers==$version"
    tar -xzf "$work/transformers-$version.tar.gz" -C "$work" "transformers-$version/tests"
    mkdir -p "$work/unpacked" "$venv/transformers-tests"
    mv "$work/transformers-$version/tests" "$work/unpacked/transformers_tests"
    # last, and in one step: a folder that is there is complete
    mv "$work/unpacked" "$upstream"
    rm -rf "$work"
    echo "transformers $version: test files unpacked to $upstream"
fi

echo "transformers $version: running its common tests against SViT"
cd "$here"
export PYTHONPATH="$upstream${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest --numprocesses "${PYTEST_WORKERS:-2}" "$@"
