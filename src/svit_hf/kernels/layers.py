# SPDX-License-Identifier: Apache-2.0
"""The layers of SViT as they run with kernels: each function here takes the place of one layer's `forward`.

Where something would be missed if kernels used the weights of a submodule without calling it (a hook, an adapter, a
`forward` of its own), the layer's own forward runs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers.activations import GELUActivation

from svit_hf.kernels.choice import resolve


# file that defines the layers, here and in copies of the code on the Hub
_MODEL_FILE = "modeling_svit"
# where a layer notes which kernels it was given
_CHOICE = "svit_kernels"


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that kernels can serve."""
    return [module for module in model.modules() if _with_kernels(module) is not None]


def set_kernels(layer: nn.Module, kernels: str | None) -> None:
    """Let a layer compute with kernels, or as its class does; where something else replaced `forward`, that stays."""
    attributes = vars(layer)
    is_own, is_served = _has_own_forward(layer), attributes.pop(_CHOICE, None) is not None
    if kernels is None and is_own:
        attributes.pop("forward", None)
    # what was put over kernels in the meantime, as offloading does, calls them still, and they look for the choice
    elif kernels is not None and (is_own or is_served):
        attributes[_CHOICE] = kernels
        forward = _with_kernels(layer)
        if forward is not None and "forward" not in attributes:
            attributes["forward"] = partial(forward, layer)


def super_token_attention(
    operators: Any,
    hidden_states: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
    cell_size: tuple[int, int],
    num_iterations: int,
    sampler: str,
    norm: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `norm`, and after it `super_token_attention` of the model.

    A plain `nn.LayerNorm` takes part in the sampling; any other module or function is called.

    Returns:
        The new tokens, `(B, C, H, W)`, the super tokens and the association.
    """
    if _is_plain_layer_norm(norm):
        norm = cast(nn.LayerNorm, norm)
        # autocast may make LayerNorm answer in float32: it is asked, with no token at all
        dtype = norm(hidden_states.new_empty(0, hidden_states.shape[1])).dtype
        sampled = operators.normalize_and_sample(
            hidden_states, norm.weight, norm.bias, norm.eps, cell_size, num_iterations, sampler, dtype
        )
    else:
        normalized = norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        sampled = operators.sample_super_tokens(normalized, cell_size, num_iterations, sampler)
    super_tokens, association = sampled[:2]
    size = hidden_states.shape[-2:]
    return operators.upsample_tokens(attend(super_tokens), association, cell_size, size), super_tokens, association


def _attention(module: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
    operators = _operators(module, hidden_states, module.sampler)
    if operators is None or module.cell_size == (1, 1):
        return type(module).forward(module, hidden_states, **kwargs)
    return super_token_attention(
        operators,
        hidden_states,
        lambda super_tokens: module.self_attention(super_tokens, **kwargs)[0],
        module.cell_size,
        module.num_iterations,
        module.sampler,
        module.norm,
    )


def _attention_alone(module: Any, hidden_states: torch.Tensor) -> Any:
    if _operators(module, hidden_states, module.sampler) is None or module.cell_size == (1, 1):
        return type(module).forward(module, hidden_states)
    return _attention(module, hidden_states)[0]


def _residual(module: Any, hidden_states: torch.Tensor) -> Any:
    operators = _operators_for_depthwise(module, hidden_states)
    if operators is None:
        return type(module).forward(module, hidden_states)
    return _convolve(operators, module, hidden_states, "none")


def _feed_forward(module: Any, hidden_states: torch.Tensor) -> Any:
    depthwise, activation = module.depthwise, module.activation
    operators = _operators_for_depthwise(depthwise, hidden_states)
    is_fused = operators is not None and type(activation) is GELUActivation and _is_bare(activation)
    if not is_fused or _has_hooks(depthwise) or not _has_own_forward(depthwise):
        return type(module).forward(module, hidden_states)
    # one pass over the widest map of the block; backward needs what went in and not its GELU
    return module.fc2(_convolve(operators, depthwise, module.fc1(hidden_states), "gelu"))


_FORWARDS: dict[str, Callable[..., Any]] = {
    "SViTSuperTokenAttention": _attention,
    "SuperTokenAttention": _attention_alone,
    "SViTDepthwiseResidual": _residual,
    "SViTConvFFN": _feed_forward,
}


def _with_kernels(module: nn.Module) -> Callable[..., Any] | None:
    # a subclass with a forward of its own is another layer
    owner = next(each for each in type(module).__mro__ if "forward" in vars(each))
    return _FORWARDS.get(owner.__name__) if owner.__module__.rpartition(".")[2] == _MODEL_FILE else None


def _has_own_forward(module: nn.Module) -> bool:
    """Whether `forward` is the class's, or the one that was put on here."""
    forward = vars(module).get("forward")
    return forward is None or (isinstance(forward, partial) and forward.func in _FORWARDS.values())


def _operators(module: nn.Module, tokens: torch.Tensor, sampler: str | None = None) -> Any | None:
    """Return the operators that a layer was given and that can run on its tokens, or None."""
    kernels = getattr(module, _CHOICE, None)
    # an exported program shall run where this package is missing
    if kernels is None or (kernels == "auto" and torch.compiler.is_exporting()):
        return None
    name = _resolve(kernels, tokens.device, tokens.dtype, sampler)
    return None if name is None else getattr(torch.ops, f"svit_hf_{name}")


# a compiler takes the answer as it is instead of tracing the search
@torch.compiler.assume_constant_result
def _resolve(kernels: str, device: torch.device, dtype: torch.dtype, sampler: str | None) -> str | None:
    return resolve(kernels, device, dtype, sampler)


def _operators_for_depthwise(module: Any, hidden_states: torch.Tensor) -> Any | None:
    # a feed-forward may be without one
    convolution = getattr(module, "convolution", None)
    if type(convolution) is not nn.Conv2d or not _is_bare(convolution):
        return None
    return _operators(module, hidden_states)


def _convolve(operators: Any, module: Any, hidden_states: torch.Tensor, activation: str) -> Any:
    """Run a residual depthwise convolution, in the dtype that it has without kernels."""
    device_type, dtype = hidden_states.device.type, hidden_states.dtype
    if torch.is_autocast_enabled(device_type):
        # autocast gives the convolution a dtype of its own
        autocast_dtype = torch.get_autocast_dtype(device_type)
        dtype = torch.promote_types(dtype, autocast_dtype) if module.has_shortcut else autocast_dtype
    weight, bias = module.convolution.weight, module.convolution.bias
    return operators.depthwise_residual(hidden_states.to(dtype), weight, bias, activation, module.has_shortcut)


def _is_plain_layer_norm(norm: object) -> bool:
    """Whether a norm is nothing but LayerNorm over channels: no subclass, and nothing was hung on it."""
    return (
        type(norm) is nn.LayerNorm
        and len(norm.normalized_shape) == 1
        and norm.weight is not None
        and norm.bias is not None
        and _is_bare(norm)
    )


def _is_bare(module: nn.Module) -> bool:
    """Whether nothing would be missed if kernels used a module's weights without calling it.

    Offloading and sharding bring weights in by hooks or by a `forward` of the object; inspection reads them out there.
    """
    return not _has_hooks(module) and "forward" not in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or nn.modules.module._has_any_global_hook()
