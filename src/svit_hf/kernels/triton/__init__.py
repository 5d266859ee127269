# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton: what they need to run, and what they offer. Importing this does not import Triton."""

import os
from importlib import metadata
from importlib.util import find_spec

import torch


# none before the kernels have run and been timed on a GPU: so far they were interpreted and compiled alone
AUTO_DEVICES: tuple[str, ...] = ()
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SAMPLERS = ("soft", "soft_masked")
# the first that carries tuples through loops
MIN_VERSION = (3, 3)
# of NVIDIA's Ampere, the first whose tensor cores multiply bfloat16 and parts of float32
MIN_CAPABILITY = (8, 0)


def find_obstacle(device: torch.device | None, dtype: torch.dtype | None, sampler: str | None) -> str | None:
    """Return why these kernels cannot run on such tokens, or None."""
    if find_spec("triton") is None:
        return 'triton is not installed (pip install "svit-hf[kernels]")'
    version = _installed_version()
    if version is not None and version < MIN_VERSION:
        return f"triton {'.'.join(map(str, version))} is older than {'.'.join(map(str, MIN_VERSION))}"
    if dtype is not None and dtype not in DTYPES:
        return f"the tokens are {dtype}, and triton's kernels take {', '.join(map(str, DTYPES))}"
    if sampler not in (None, *SAMPLERS):
        return f"the super-token sampler {sampler!r} is not among those that triton's kernels know, {SAMPLERS}"
    if device is None or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the tokens are on {device}, and triton's kernels were written for, and checked on, NVIDIA GPUs alone"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {MIN_CAPABILITY}"
    return None


def load() -> None:
    """Register the operators as `torch.ops.svit_hf_triton`; imports Triton."""
    from . import depthwise, feed_forward, normalized_sampling, sampling, upsampling  # noqa: F401


def _installed_version() -> tuple[int, ...] | None:
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        # nightly builds, and those for Windows, have other names; none is as old as that
        return None
    return tuple(int(part) for part in version.split(".")[:2])
