# SPDX-License-Identifier: Apache-2.0
"""Fold what is linear around a convolution into its weights: the same model, in fewer passes over memory.

Residual depthwise convolutions, layer scales, and batch norms next to a convolution all fold exactly. The batch norms
of the stem stay: they come after an activation and before a zero-padded convolution, so that a folded shift would be
missing along the border. Layer norms stay too: what they normalise is both compared and averaged. The scales of the
softmaxes take no pass of their own.
"""

import copy
from functools import partial
from itertools import chain
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from svit_hf.errors import SViTError
from svit_hf.inference.cpp_forms import use_cpp_forms
from svit_hf.inference.cpu_forms import use_cpu_forms
from svit_hf.model.modeling_svit import (
    SViTDepthwiseResidual,
    SViTDownsampling,
    SViTLayer,
    SViTLayerScale,
    SViTPooler,
    SViTPreTrainedModel,
    SViTSelfAttention,
)


Model = TypeVar("Model", bound=SViTPreTrainedModel)


def fold_for_inference(model: Model, cpp: bool = False) -> Model:
    """Return a copy of a model that computes the same with fewer operations, for inference alone.

    The copy is of the same class, in evaluation mode, with the same outputs and options. It shares nothing with
    `model`, which may go on training. What only makes sense for the original is refused: training mode, gradients,
    saving and pushing.

    Args:
        model: `SViTForImageClassification`, `SViTModel` or `SViTBackbone`, of any dtype, on any device.
        cpp: Whether the copy runs its layers by operators in C++ on a CPU, in float32 and bfloat16. These are compiled
            the first time, which takes a C++ compiler, ninja and half a minute. Elsewhere nothing changes.

    Returns:
        The folded copy. In float32 its outputs differ from those of `model` in evaluation mode by rounding alone.

    Raises:
        SViTError: If `model` is no such model, or has layers or weights that do not fold, or if `cpp` is asked for and
            the operators cannot be compiled; the message says why.

    Example:
        >>> import torch
        >>> from svit_hf import SViTConfig, SViTForImageClassification
        >>> from svit_hf.inference import fold_for_inference
        >>> model = fold_for_inference(SViTForImageClassification(SViTConfig(num_labels=10)))
        >>> model(torch.randn(1, 3, 64, 64)).logits.shape
        torch.Size([1, 10])
    """
    folded = fold_weights(model)
    use_cpu_forms(folded)
    if cpp:
        use_cpp_forms(folded)
    return folded


def fold_weights(model: Model) -> Model:
    """Return the folded copy in the layers of the model's own code, where `fold_for_inference` takes some of a CPU's.

    Args:
        model: As in `fold_for_inference`.
    """
    if not isinstance(model, SViTPreTrainedModel):
        raise SViTError(
            f"`model` is a {type(model).__name__}; it has to be an SViTForImageClassification, SViTModel or "
            "SViTBackbone of svit_hf. Fold first, compile or wrap afterwards."
        )
    folded = copy.deepcopy(model)
    folded.train(False)
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, SViTLayer):
            _fold_layer(module)
        elif isinstance(module, SViTDownsampling):
            _scale_outputs(plain_convolution(module, "convolution"), *_scale_and_shift(module.batch_norm))
            module.register_module("batch_norm", nn.Identity())
        elif isinstance(module, SViTPooler) and not isinstance(module.projection, nn.Identity):
            _scale_outputs(plain_convolution(module, "projection"), *_scale_and_shift(module.batch_norm))
            module.register_module("batch_norm", nn.Identity())
    for module in folded.modules():
        if isinstance(module, SViTPreTrainedModel):
            _restrict_to_inference(module)
    return folded


def _fold_layer(layer: SViTLayer) -> None:
    attention, mlp = getattr(layer.attention, "self_attention", None), layer.mlp
    _take_shortcut_in(layer.position_embedding)
    _take_shortcut_in(mlp.depthwise)
    _scale_inputs(plain_convolution(mlp, "fc1"), *_scale_and_shift(layer.mlp_norm))
    layer.register_module("mlp_norm", nn.Identity())
    # upsampling mixes positions, the scale channels: in which order does not matter; without attention there is no
    # projection to fold into
    if isinstance(layer.layer_scale1, SViTLayerScale) and isinstance(attention, SViTSelfAttention):
        _scale_outputs(plain_convolution(attention, "projection"), layer.layer_scale1.scale)
        layer.layer_scale1 = nn.Identity()
    if isinstance(layer.layer_scale2, SViTLayerScale):
        _scale_outputs(plain_convolution(mlp, "fc2"), layer.layer_scale2.scale)
        layer.layer_scale2 = nn.Identity()


def _take_shortcut_in(residual: nn.Module) -> None:
    """Turn `x + convolution(x)` into one convolution, where there is one."""
    if isinstance(residual, nn.Identity):
        return
    if not isinstance(residual, SViTDepthwiseResidual) or not residual.has_shortcut:
        raise SViTError(
            f"`model` has a {type(residual).__name__} without a shortcut where a residual depthwise convolution "
            "should be; was it folded before?"
        )
    plain_convolution(residual, "convolution").weight[:, 0, 1, 1] += 1
    residual.has_shortcut = False


def _scale_and_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a batch norm does in evaluation mode, `x * scale + shift`, as float64 tensors of shape `(C,)`."""
    mean, variance, weight, bias = (
        getattr(norm, name).double() for name in ("running_mean", "running_var", "weight", "bias")
    )
    scale = weight * (variance + norm.eps).rsqrt()
    return scale, bias - mean * scale


def _scale_outputs(convolution: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor | float = 0.0) -> None:
    """Let a convolution give `scale * y + shift` where it gave `y`."""
    assert convolution.bias is not None
    convolution.weight.copy_(convolution.weight.double() * scale.view(-1, 1, 1, 1))
    convolution.bias.copy_(convolution.bias.double() * scale + shift)


def _scale_inputs(convolution: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Let a 1x1 convolution take `x` where it took `scale * x + shift`."""
    assert convolution.bias is not None
    weight = convolution.weight.double().flatten(1)
    convolution.bias.copy_(convolution.bias.double() + weight @ shift)
    convolution.weight.copy_((weight * scale).view_as(convolution.weight))


def plain_convolution(owner: nn.Module, name: str) -> nn.Conv2d:
    """Return a convolution whose weights can be changed in place."""
    convolution = getattr(owner, name)
    # subclasses are what adapters and parametrizations put there, tensors of other types hold quantised weights
    if type(convolution) is not nn.Conv2d or type(convolution.weight) is not nn.Parameter:
        raise SViTError(
            f"`{name}` of an {type(owner).__name__} is no plain nn.Conv2d but a {type(convolution).__name__} whose "
            f"weights are a {type(convolution.weight).__name__}, and does not fold. Merge adapters and remove "
            "parametrizations before folding; quantise after it."
        )
    if convolution.weight.is_meta:
        raise SViTError(
            f"`{name}` of an {type(owner).__name__} has its weights on the meta device or offloaded; the whole of "
            "`model` has to be in memory."
        )
    return convolution


def _restrict_to_inference(model: SViTPreTrainedModel) -> None:
    # on the object, since a subclass would be unknown to pipelines
    overrides = {
        "train": partial(_set_training, model),
        "requires_grad_": partial(_set_requires_grad, model),
        "save_pretrained": partial(_refuse, "be saved"),
        "push_to_hub": partial(_refuse, "be pushed"),
    }
    for name, override in overrides.items():
        setattr(model, name, override)
    model.register_forward_pre_hook(_refuse_gradients, with_kwargs=True)


def _set_training(model: SViTPreTrainedModel, mode: bool = True) -> SViTPreTrainedModel:
    return _refuse("train") if mode else model


def _set_requires_grad(model: SViTPreTrainedModel, requires_grad: bool = True) -> SViTPreTrainedModel:
    return _refuse("have gradients") if requires_grad else model


def _refuse_gradients(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = chain(model.parameters(), args, kwargs.values())
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors):
        _refuse("have gradients")


def _refuse(what: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise SViTError(f"A folded model cannot {what}: it is for inference alone. Use the model it was folded from.")
