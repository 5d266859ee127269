# SPDX-License-Identifier: Apache-2.0
"""Which code runs the super-token operations: PyTorch's own operators, or the kernels of the package `svit_hf`.

This folder also ships to the Hub without that package. So the kernels are asked for by name, when they are needed, and
without them nothing is missing but speed.
"""

from typing import Any

import torch
from torch import nn


def find_kernels(implementation: str, tokens: torch.Tensor, sampler: str | None = None) -> Any | None:
    """Return the operators to use for `tokens`, a namespace of `torch.ops`, or None for PyTorch's own.

    Args:
        implementation: "auto", "eager", or the name of kernels such as "triton".
        tokens: What they would run on; only its device and dtype matter.
        sampler: The super-token sampler, where one is used.

    Raises:
        ValueError: If the implementation was asked for by name and cannot run; the message says why.
    """
    # an exported program shall run where the package is missing
    if implementation == "auto" and torch.compiler.is_exporting():
        return None
    name = resolve_implementation(implementation, tokens.device, tokens.dtype, sampler)
    return None if name == "eager" else getattr(torch.ops, f"svit_hf_{name}")


# a compiler takes the answer as it is instead of tracing the search
@torch.compiler.assume_constant_result
def resolve_implementation(
    implementation: str, device: torch.device, dtype: torch.dtype, sampler: str | None = None
) -> str:
    """Return the name of what runs for tokens of a device and dtype: "eager", or that of kernels.

    Raises:
        ValueError: As `find_kernels`.
    """
    if implementation == "eager":
        return "eager"
    try:
        from svit_hf.kernels import resolve
    except ImportError:
        check_implementation(implementation)
        return "eager"
    return resolve(implementation, device, dtype, sampler)


def check_implementation(implementation: str) -> None:
    """Refuse an implementation that can run nowhere in this process.

    Raises:
        ValueError: If it is unknown, or what it needs is missing; the message says what.
    """
    try:
        from svit_hf.kernels import require
    except ImportError:
        if implementation not in ("auto", "eager"):
            raise ValueError(
                f"`super_token_implementation` is {implementation!r}; without the package `svit_hf` only 'auto' and "
                "'eager' are allowed, which are then the same."
            ) from None
    else:
        require(implementation)


def is_bare(module: nn.Module) -> bool:
    """Tell whether nothing would be missed if kernels used a module's weights without calling it.

    Offloading and sharding bring weights in by hooks or by a `forward` of the object; inspection reads them out there.
    """
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks) and "forward" not in vars(module) and not nn.modules.module._has_any_global_hook()
