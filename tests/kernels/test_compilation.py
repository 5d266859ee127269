# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for real GPUs, in every dtype, and fits into them."""

import json
from pathlib import Path

import pytest


pytest.importorskip("triton")

# what a block of threads can have, in bytes, by compute capability
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.slow
def test_kernels_fit_into_a_gpu_without_spilling(fresh_python):
    printed = fresh_python(
        Path(__file__).with_name("compile_for_gpus.py"),
        environment={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": "cache"},
    )
    kernels = [json.loads(line) for line in printed.splitlines()]
    names = {
        *("cell_mean_kernel", "associate_kernel", "upsample_kernel", "aggregate_kernel", "reduce_kernel"),
        *("differentiate_kernel", "depthwise_kernel", "depthwise_backward_kernel"),
    }
    assert {(each["capability"], each["dtype"], each["kernel"]) for each in kernels} == {
        (capability, f"torch.{dtype}", name)
        for capability in SHARED_MEMORY
        for dtype in ("float32", "float16", "bfloat16")
        for name in names
    }
    assert [each for each in kernels if each["stack"] or each["shared"] > SHARED_MEMORY[each["capability"]]] == []
