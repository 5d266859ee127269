#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The documentation site, in build/docs, with warnings as errors. Needs no network once its environment is there.
#
# Usage: scripts/docs.sh [ARGUMENTS OF SPHINX]      such as: -b linkcheck, which does need the network; -E for anew
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/environment.sh
ensure_test_environment
# beside a CPU build of torch, torchvision is imported as in the tests; docstrings are those of this checkout
export PYTHONPATH="$PWD/tests/child_process:$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
.venv-test/bin/python -m sphinx --fail-on-warning --keep-going --quiet "$@" docs build/docs
echo "docs: build/docs/index.html"
