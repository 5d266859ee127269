# SPDX-License-Identifier: Apache-2.0
"""What the tests of kernels compare with, and how: inputs, errors, and which operators ran."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svit_hf.kernels import IMPLEMENTATIONS


IMPLEMENTATION = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])


def tensor_of(device, *shape, dtype=torch.float32):
    """Return normally distributed numbers, the same for a shape every time."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def mix(super_tokens):
    """Stand in for attention: mixes super tokens over the whole grid, not linearly."""
    return super_tokens.tanh() + super_tokens.mean(dim=(2, 3), keepdim=True) ** 2


def relative_error(actual, expected):
    """Return the error in norm."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


class OperatorRecorder(TorchDispatchMode):
    """Keep the names of the operators that run, such as `aten.gelu`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))
