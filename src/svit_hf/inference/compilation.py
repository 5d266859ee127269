# SPDX-License-Identifier: Apache-2.0
"""Compile a model: its layers, each kind once, or the whole with its weights as constants."""

import inspect
from typing import Any, NoReturn

import torch
from torch import nn
from torch._inductor import config as inductor_config

from svit_hf.errors import SViTError
from svit_hf.model.modeling_svit import SViTLayer, SViTPreTrainedModel


# all layers count together: with four stages the compiler's own limit of 8 would let the third size fall back to
# what is not compiled
RECOMPILE_LIMIT = 64


def compile_layers(model: SViTPreTrainedModel, **options: Any) -> None:
    """Compile the layers of a model in place, each kind of layer once.

    The layers of a stage differ in their weights alone and share what is compiled for the first of them; stem,
    downsampling, pooler and classifier stay as they are. Compilation happens at the first call; with `dynamic=False`,
    at the first call of each batch and image size. Meant for evaluation mode: while training, each layer has a
    drop path rate of its own.

    Args:
        model: `SViTForImageClassification`, `SViTModel` or `SViTBackbone`, folded or not.
        **options: Arguments of `torch.compile`. Where it has `recompile_limit` (not in older releases), the default is
            `RECOMPILE_LIMIT`. Not `fullgraph=True` where outputs of layers are recorded, which a backbone always does:
            the compiler cannot trace Transformers' recording and breaks its graphs there.

    Raises:
        SViTError: If `model` is no such model.
    """
    _prepare(model, options)
    for module in model.modules():
        if isinstance(module, SViTLayer):
            module.compile(**options)


def compile_frozen(model: SViTPreTrainedModel, **options: Any) -> None:
    """Compile a folded model as a whole, in place, with its weights as constants.

    On a CPU, the inductor stores such weights as the convolutions want them, and joins GELU and the residual sums to
    the convolution before them. Compilation happens at the first call of each batch and image size, and takes a minute
    or more for SViT-S; the weights are in memory twice from then on. So move the model to its device and dtype first:
    afterwards that, and loading other weights, is refused. Changing a weight in place has no effect any more.

    Passing `options={"freezing": True}` to `torch.compile` does not do this: PyTorch reads the setting of the whole
    process while it traces a model, and those options only after that.

    Args:
        model: What `fold_for_inference` returned.
        **options: Arguments of `torch.compile`; `dynamic` is False unless given, and `recompile_limit` as in
            `compile_layers`.

    Raises:
        SViTError: If `model` is no such model.
    """
    _prepare(model, options)
    if "save_pretrained" not in vars(model):
        raise SViTError("`model` is not folded; compile what `fold_for_inference` returns.")
    compile_with_constants(model, **options)
    for name in ("_apply", "load_state_dict"):
        setattr(model, name, _refuse_other_weights)


def compile_with_constants(model: nn.Module, **options: Any) -> None:
    """Compile any network in place, with its weights as constants; nothing keeps them from being changed.

    Args:
        model: In evaluation mode.
        **options: Arguments of `torch.compile`; `dynamic` is False unless given.
    """
    options.setdefault("dynamic", False)
    model.compile(**options)
    compiled: Any = model._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        # both are asked for while tracing, which can happen at any call
        with torch.no_grad(), inductor_config.patch(freezing=True):
            return compiled(*args, **kwargs)

    # what `nn.Module` calls in the place of `forward`, and leaves out of copies and pickles
    model._compiled_call_impl = call


def _prepare(model: SViTPreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse what is no model of this package, and complete the arguments of `torch.compile`."""
    if not isinstance(model, SViTPreTrainedModel):
        raise SViTError(
            f"`model` is a {type(model).__name__}; it has to be an SViTForImageClassification, SViTModel or "
            "SViTBackbone of svit_hf."
        )
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options.setdefault("recompile_limit", RECOMPILE_LIMIT)


def _refuse_other_weights(*args: Any, **kwargs: Any) -> NoReturn:
    raise SViTError(
        "The weights of a frozen model are constants of compiled code: it cannot be moved, converted or loaded. Do "
        "that with a folded model, and freeze it then."
    )
