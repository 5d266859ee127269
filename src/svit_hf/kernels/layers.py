# SPDX-License-Identifier: Apache-2.0
"""The layers of SViT as they run with kernels: each function here takes the place of a method of a layer.

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
    """Let a layer compute with kernels, or as its class does; where something else replaced the method, that stays."""
    attributes = vars(layer)
    name, function = cast(tuple[str, Callable[..., Any]], _with_kernels(layer))
    is_own, is_served = _is_own(layer, name), attributes.pop(_CHOICE, None) is not None
    if kernels is None and is_own:
        attributes.pop(name, None)
    # what was put over kernels in the meantime, as offloading does, calls them still, and they look for the choice
    elif kernels is not None and (is_own or is_served):
        attributes[_CHOICE] = kernels
        attributes.setdefault(name, partial(function, layer))


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
    operators = _operators_for_feed_forward(module, hidden_states)
    if operators is None:
        return type(module).forward(module, hidden_states)
    if _has_plain_products(module, hidden_states):
        return _mix(operators, module, hidden_states, None, None, None, _dtype_of_convolutions(hidden_states))
    # one pass over the widest map of the block; backward needs what went in and not its GELU
    return module.fc2(_convolve(operators, module.depthwise, module.fc1(hidden_states), "gelu"))


def _add_mixed(module: Any, hidden_states: torch.Tensor, normalized: torch.Tensor, num_frames: int = 1) -> Any:
    mlp, scaling, drop_path, dropout = module.mlp, module.layer_scale2, module.drop_path, module.dropout
    operators = _operators_for_feed_forward(mlp, normalized)
    is_plain = (
        operators is not None
        and not _has_hooks(mlp)
        and _is_own(mlp, "forward")
        and _has_plain_products(mlp, normalized)
        and all(_can_be_bypassed(each) for each in (scaling, drop_path, dropout))
        and (type(scaling) is nn.Identity or type(scaling).__name__ == "SViTLayerScale")
        and type(drop_path).__name__ == "SViTDropPath"
        and type(dropout) is nn.Dropout
        and not (dropout.training and dropout.p)
    )
    if not is_plain:
        return type(module).add_mixed(module, hidden_states, normalized, num_frames)
    scale = None if type(scaling) is nn.Identity else scaling.scale
    factors = None
    if drop_path.training and drop_path.rate > 0.0:
        # it multiplies what it is given by a factor for each image, drawn as ever
        kept = hidden_states.new_ones(len(hidden_states), 1, 1, 1, dtype=torch.float32)
        factors = drop_path(kept, num_frames).flatten()
    dtype = torch.promote_types(hidden_states.dtype, _dtype_of_convolutions(normalized))
    if scale is not None:
        dtype = torch.promote_types(dtype, scale.dtype)
    return _mix(operators, mlp, normalized, scale, factors, hidden_states, dtype)


def _mix(
    operators: Any,
    mlp: Any,
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None,
    factors: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute a feed-forward without its wide map in memory more than once."""
    convolution, fc1, fc2 = mlp.depthwise.convolution, mlp.fc1, mlp.fc2
    inputs = hidden_states, *mlp.parameters()
    if scale is not None:
        inputs += (scale,)
    output: torch.Tensor = operators.feed_forward(
        hidden_states.to(_dtype_of_convolutions(hidden_states)),
        fc1.weight,
        fc1.bias,
        convolution.weight,
        convolution.bias,
        mlp.depthwise.has_shortcut,
        fc2.weight,
        fc2.bias,
        scale,
        factors,
        residual,
        dtype,
        torch.is_grad_enabled() and any(each.requires_grad for each in inputs),
    )[0]
    return output


# by the class that defines `forward`: the method, and what takes its place
_METHODS: dict[str, tuple[str, Callable[..., Any]]] = {
    "SViTSuperTokenAttention": ("forward", _attention),
    "SuperTokenAttention": ("forward", _attention_alone),
    "SViTDepthwiseResidual": ("forward", _residual),
    "SViTConvFFN": ("forward", _feed_forward),
    "SViTLayer": ("add_mixed", _add_mixed),
}


def _with_kernels(module: nn.Module) -> tuple[str, Callable[..., Any]] | None:
    # a subclass with a forward of its own is another layer
    owner = next(each for each in type(module).__mro__ if "forward" in vars(each))
    if owner.__module__.rpartition(".")[2] != _MODEL_FILE or owner.__name__ not in _METHODS:
        return None
    name, function = _METHODS[owner.__name__]
    # copies of the code on the Hub may be older
    return (name, function) if name in vars(owner) else None


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether a method is the class's, or the one that was put on here."""
    method = vars(module).get(name)
    functions = [function for _, function in _METHODS.values()]
    return method is None or (isinstance(method, partial) and method.func in functions)


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
    if not _is_plain_convolution(convolution):
        return None
    return _operators(module, hidden_states)


def _operators_for_feed_forward(module: Any, hidden_states: torch.Tensor) -> Any | None:
    """Return the operators for GELU and depthwise convolution, or None where they are not what the model has."""
    depthwise, activation = module.depthwise, module.activation
    if type(activation) is not GELUActivation or not _can_be_bypassed(activation):
        return None
    if _has_hooks(depthwise) or not _is_own(depthwise, "forward"):
        return None
    return _operators_for_depthwise(depthwise, hidden_states)


def _convolve(operators: Any, module: Any, hidden_states: torch.Tensor, activation: str) -> Any:
    """Run a residual depthwise convolution, in the dtype that it has without kernels."""
    dtype = _dtype_of_convolutions(hidden_states)
    if module.has_shortcut:
        dtype = torch.promote_types(hidden_states.dtype, dtype)
    weight, bias = module.convolution.weight, module.convolution.bias
    return operators.depthwise_residual(hidden_states.to(dtype), weight, bias, activation, module.has_shortcut)


def _dtype_of_convolutions(hidden_states: torch.Tensor) -> torch.dtype:
    """Return the dtype of a convolution's result: autocast gives it one of its own."""
    device_type = hidden_states.device.type
    is_cast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_cast else hidden_states.dtype


def _has_plain_products(mlp: Any, hidden_states: torch.Tensor) -> bool:
    """Whether kernels may compute the products of a feed-forward: in half precision, where nothing was hung on them.

    PyTorch's own are faster in float32, where they round to TF32.
    """
    return _dtype_of_convolutions(hidden_states) in (torch.bfloat16, torch.float16) and all(
        _is_plain_convolution(each) for each in (mlp.fc1, mlp.fc2)
    )


def _is_plain_convolution(module: Any) -> bool:
    """Whether a module is a convolution and nothing else, or stands for one; and nothing was hung on it."""
    return (type(module) is nn.Conv2d or getattr(module, "is_plain_elsewhere", False)) and _can_be_bypassed(module)


def _is_plain_layer_norm(norm: object) -> bool:
    """Whether a norm is nothing but LayerNorm over channels: no subclass, and nothing was hung on it."""
    return (
        type(norm) is nn.LayerNorm
        and len(norm.normalized_shape) == 1
        and norm.weight is not None
        and norm.bias is not None
        and _can_be_bypassed(norm)
    )


def _can_be_bypassed(module: nn.Module) -> bool:
    """Whether nothing would be missed if kernels used a module's weights without calling it.

    Offloading and sharding bring weights in by hooks or by a `forward` of the object; inspection reads them out there.
    """
    return not _has_hooks(module) and "forward" not in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or nn.modules.module._has_any_global_hook()
