# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for real GPUs, in every dtype, and fits into them."""

import json
from pathlib import Path

import pytest


pytest.importorskip("triton")

# what a block of threads can have, in bytes, by compute capability
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


# machine instructions for an element of the wide map in bfloat16, capability 9.0: a little more than README.md counts
MOST_INSTRUCTIONS = {
    "widen_kernel": 28,
    "narrow_kernel": 38,
    "depthwise_kernel": 42,
    "depthwise_backward_kernel": 62,
}


# every kernel by way of the tensor cores; in the campaign all shapes of all dtypes
SOME = (90, "bfloat16", "some")
ALL = [(capability, dtype, "all") for capability in SHARED_MEMORY for dtype in ("float32", "float16", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "shapes"), [SOME, *(pytest.param(*case, marks=pytest.mark.campaign) for case in ALL)]
)
def test_kernels_fit_into_a_gpu_without_spilling(capability, dtype, shapes, fresh_python):
    printed = fresh_python(
        Path(__file__).with_name("compile_for_gpus.py"),
        *(capability, dtype, shapes),
        environment={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": "cache"},
    )
    kernels = [json.loads(line) for line in printed.splitlines()]
    names = {
        *("cell_mean_kernel", "associate_kernel", "upsample_kernel", "aggregate_kernel", "reduce_kernel"),
        *("differentiate_kernel", *MOST_INSTRUCTIONS),
    }
    assert {each["kernel"] for each in kernels} == names
    assert [each for each in kernels if each["stack"] or each["shared"] > SHARED_MEMORY[capability]] == []
    if (capability, dtype) == (90, "bfloat16"):
        counted = [each for each in kernels if each["kernel"] in MOST_INSTRUCTIONS]
        # fewer than the taps and their tokens would be a wrong count
        assert [each for each in counted if not 9 < each["instructions"] <= MOST_INSTRUCTIONS[each["kernel"]]] == []
