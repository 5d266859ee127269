#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every check that runs no test: lint, format, types, import contracts, hygiene of files; see .pre-commit-config.yaml.
# Looks at all files that git tracks or would track, so at new ones too (pre-commit's --all-files leaves those out).
#
# Usage: scripts/check.sh [HOOK_ID]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/environment.sh
ensure_test_environment
# the hooks call the tools by name; pre-commit's own files stay inside the environment
export PATH="$PWD/.venv-test/bin:$PATH" PRE_COMMIT_HOME="$PWD/.venv-test/pre-commit"
git ls-files -z --cached --others --exclude-standard | xargs -0 pre-commit run "$@" --files
