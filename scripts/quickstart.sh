#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# From a fresh checkout to a trained model: makes .venv if need be, then `svit-hf quickstart` with the arguments given.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

source "$root/scripts/environment.sh"
ensure_environment .venv quickstart constraints.txt
exec "$root/.venv/bin/svit-hf" quickstart "$@"
