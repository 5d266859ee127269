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
# as in the tests: torchvision can be imported beside a CPU build of torch, and torchao does not write to stderr
export PYTHONPATH="$PWD/tests/child_process:$PWD/src" SVIT_TEST_HIDDEN_PACKAGES=torchao HF_HUB_OFFLINE=1
.venv-test/bin/python -m sphinx --fail-on-warning --keep-going --quiet "$@" docs build/docs
echo "docs: build/docs/index.html"
