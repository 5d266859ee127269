#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measure everything that docs/results.md reports about speed, in the active environment: half an hour on a CPU, and
# on the GPU too where there is one. Nothing else should run meanwhile.
#
# Usage: scripts/benchmark_all.sh OUTPUT_DIR [BASELINE.py]
#        OUTPUT_DIR gets one JSON file per measurement, and tables (.md) and a chart (.png) per device;
#        BASELINE.py holds the official operators.
set -euo pipefail

output=${1:?usage: scripts/benchmark_all.sh OUTPUT_DIR [BASELINE.py]}
baseline=(${2:+--baseline "$2"})
mkdir -p "$output"

# Usage: measure NAME ARGUMENTS...: one run, in a process of its own, to OUTPUT_DIR/NAME.json.
measure() {
    local name=$1
    shift
    python -m svit_hf benchmark ${baseline[@]+"${baseline[@]}"} "$@" --output "$output/$name.json"
}

# Usage: render DEVICE NAMES...
render() {
    local device=$1
    shift
    python -m svit_hf benchmark --render "${@/%/.json}" --output "$device.md" "$device.png" >/dev/null
    echo "wrote $device.md and $device.png"
}

measure cpu-inference --device cpu --batch-size 8 1 --repeats 7 --export onnx --int8
measure cpu-compiled --device cpu --repeats 7 --compile --peers
measure cpu-base --device cpu --model base --repeats 5 --peers
measure cpu-large --device cpu --model large --repeats 3 --peers
measure cpu-training --device cpu --task training --repeats 5 --peers swin-t convnext-t
measure cpu-super-tokens --device cpu --repeats 7 --part super-tokens
measure cpu-super-tokens-training --device cpu --repeats 7 --part super-tokens --task training
measure cpu-operators --device cpu --repeats 7 --part operators
measure cpu-growth --device cpu --repeats 3 --part growth --dtype fp32
measure cpu-data --device cpu --part data --batch-size 32 --num-workers 0 2
cd "$output"
render cpu cpu-{inference,compiled,base,large,training,super-tokens,super-tokens-training,operators,growth,data}
cd - >/dev/null

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    for model in small base large; do
        measure "cuda-inference-$model" --device cuda --model "$model" --batch-size 64 --dtype bf16 --compile
        measure "cuda-training-$model" --device cuda --model "$model" --task training --batch-size 64 --dtype bf16
    done
    measure cuda-super-tokens --device cuda --part super-tokens --batch-size 64 --dtype fp32 bf16 --compile
    measure cuda-super-tokens-training --device cuda --part super-tokens --task training --batch-size 64 --dtype bf16
    measure cuda-operators --device cuda --part operators --batch-size 64 --dtype bf16
    measure cuda-growth --device cuda --part growth --batch-size 64 --dtype bf16
    cd "$output"
    render cuda cuda-{inference,training}-{small,base,large} cuda-super-tokens{,-training} cuda-operators cuda-growth
fi
