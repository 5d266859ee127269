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


DTYPES = ("float32", "float16", "bfloat16")
# compiling takes half a minute each: these two have every kernel, the tensor cores' way and the other
ALWAYS = {(90, "bfloat16"), (80, "float32")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        pytest.param(capability, dtype, marks=() if (capability, dtype) in ALWAYS else pytest.mark.campaign)
        for capability in SHARED_MEMORY
        for dtype in DTYPES
    ],
)
def test_kernels_fit_into_a_gpu_without_spilling(capability, dtype, fresh_python):
    printed = fresh_python(
        Path(__file__).with_name("compile_for_gpus.py"),
        capability,
        dtype,
        environment={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": "cache"},
    )
    kernels = [json.loads(line) for line in printed.splitlines()]
    assert {each["kernel"] for each in kernels} == {
        *("cell_mean_kernel", "associate_kernel", "upsample_kernel", "aggregate_kernel", "reduce_kernel"),
        *("differentiate_kernel", *MOST_INSTRUCTIONS),
    }
    assert [each for each in kernels if each["stack"] or each["shared"] > SHARED_MEMORY[capability]] == []
    if (capability, dtype) == (90, "bfloat16"):
        counted = [each for each in kernels if each["kernel"] in MOST_INSTRUCTIONS]
        # fewer than the taps and their tokens would be a wrong count
        assert [each for each in counted if not 9 < each["instructions"] <= MOST_INSTRUCTIONS[each["kernel"]]] == []
