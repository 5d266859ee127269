# SPDX-License-Identifier: Apache-2.0
"""What the tests of kernels compare with, and how: inputs, errors, and which operators ran."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svit_hf.kernels import KERNELS, layers, resolve
from svit_hf.model.super_tokens_svit import SuperTokens, super_token_attention


IMPLEMENTATION = pytest.mark.parametrize("implementation", KERNELS)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPES = pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())


def cases_of(small, real):
    """Parametrise over `case` and `dtype`: the first two in half precision too, real sizes on GPUs alone."""
    cases = [(case, dtype, ()) for case in small for dtype in NAMES if dtype == torch.float32 or case in small[:2]]
    cases += [(case, dtype, pytest.mark.gpu) for case in real for dtype in NAMES]
    params = [pytest.param(case.values, dtype, marks=m, id=f"{case.id}-{NAMES[dtype]}") for case, dtype, m in cases]
    return pytest.mark.parametrize(("case", "dtype"), params)


def tensor_of(device, *shape, dtype=torch.float32):
    """Return normally distributed numbers, the same for a shape every time."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def long_batch(device):
    """Return a batch of more than 2**31 elements, zeros but for its last image, in bfloat16 and channels_last."""
    tokens = torch.zeros(172, 64, 443, 443, dtype=torch.bfloat16, device=device)
    tokens = tokens.to(memory_format=torch.channels_last)
    tokens[-1:] = tensor_of(device, 1, 64, 443, 443, dtype=torch.bfloat16)
    assert tokens.numel() > 2**31
    return tokens


def mix(super_tokens):
    """Stand in for attention: mixes super tokens over the whole grid, not linearly."""
    return super_tokens.tanh() + super_tokens.mean(dim=(2, 3), keepdim=True) ** 2


def attend(tokens, cell_size, num_iterations, sampler, implementation, norm=None, attend=mix):
    """Compute super token attention behind a norm with kernels, or with `None` as the model does."""
    norm = norm or torch.nn.Identity()
    if implementation is None:
        normalized = norm(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super_token_attention(normalized, attend, cell_size, num_iterations, sampler)
    resolve(implementation, tokens.device, tokens.dtype, sampler)
    operators = getattr(torch.ops, f"svit_hf_{implementation}")
    output, *sampled = layers.super_token_attention(
        operators, tokens, attend, cell_size, num_iterations, sampler, norm
    )
    return output, SuperTokens(*sampled)


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
