# SPDX-License-Identifier: Apache-2.0
"""Compile the repeated part of a model, so that compiling takes as long as one layer of each stage."""

import inspect
from typing import Any

import torch

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
    if not isinstance(model, SViTPreTrainedModel):
        raise SViTError(
            f"`model` is a {type(model).__name__}; it has to be an SViTForImageClassification, SViTModel or "
            "SViTBackbone of svit_hf."
        )
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options.setdefault("recompile_limit", RECOMPILE_LIMIT)
    for module in model.modules():
        if isinstance(module, SViTLayer):
            module.compile(**options)
