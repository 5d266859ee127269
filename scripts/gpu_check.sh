#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Tests of the kernels, times and profiles on a GPU machine that has torch, triton and transformers (timm for peers of
# that library, pytest for the tests) and need have nothing else: nothing is installed, nothing is downloaded.
#
# Usage: scripts/gpu_check.sh OUT_DIR [SECONDS] [OPTIONS of scripts/benchmark/gpu_check.py]
#        OUT_DIR gets env.txt, tests.txt, times.txt, times.json and profile.txt; SECONDS is 480 unless given.
set -uo pipefail

out=$(mkdir -p "${1:?usage: scripts/gpu_check.sh OUT_DIR [SECONDS]}" && cd "$1" && pwd) || exit
budget=${2:-480}
shift $(($# < 2 ? $# : 2))
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# Seconds of the budget beyond what is kept for later steps.
left() { echo $((budget - SECONDS - ${1:-0})); }

# the package is not installed here, and asks for its version when it is imported
mkdir "$site/svit_hf-0.dist-info"
printf 'Metadata-Version: 2.1\nName: svit-hf\nVersion: 0\n' >"$site/svit_hf-0.dist-info/METADATA"
export PYTHONPATH=$PWD/src:$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}:$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR=$site/inductor TRITON_CACHE_DIR=$site/triton

{
    nvidia-smi
    "$python" -m pip list 2>/dev/null | grep -iE '^(torch|triton|transformers|timm|numpy|nvidia)'
    "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'
    nproc
    grep -m 1 'model name' /proc/cpuinfo
} >"$out/env.txt" 2>&1

# compiled code goes to the cache on idle cores meanwhile; both only answer right or wrong, no times are taken
warm=
if [[ " $* " != *" --quick "* ]]; then
    timeout "$(left $((budget / 2)))" "$python" -m scripts.benchmark.gpu_check "$out" --warm "$@" \
        >"$out/warm.txt" 2>&1 &
    warm=$!
fi
if "$python" -c 'import pytest, torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    # settings of its own: the project's ask for a newer pytest, and turn the warnings of others into errors
    printf '[pytest]\nmarkers =\n  gpu: x\n  slow: x\n  network: x\n  process: x\n' >"$site/pytest.ini"
    NVIDIA_TF32_OVERRIDE=0 timeout "$(left $((budget * 5 / 8)))" "$python" -m pytest -c "$site/pytest.ini" \
        --rootdir="$PWD" --import-mode=importlib -p no:cacheprovider -q -ra --tb=short \
        --ignore=tests/kernels/test_compilation.py tests/kernels >"$out/tests.txt" 2>&1
    echo "tests of the kernels: status $?" | tee -a "$out/tests.txt"
else
    echo "tests of the kernels: left out, without pytest or a GPU" | tee "$out/tests.txt"
fi
[ -z "$warm" ] || wait "$warm" || echo "compiling: status $?, see warm.txt"
timeout "$(left 5)" "$python" -m scripts.benchmark.gpu_check "$out" --seconds "$(left 20)" "$@"
status=$?
echo "done after $SECONDS s: status $status"
exit "$status"
