# SPDX-License-Identifier: Apache-2.0
"""Less memory for training: keep the results that took long to compute, and compute the cheap ones again.

Gradient checkpointing as Transformers has it keeps the input of each layer and runs all of it twice. Much of what a
layer of SViT stores is cheap, though: what comes out of norms, GELU, depthwise convolutions, sampling and upsampling.
Here these alone are computed again, while projections and attention run once.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def selective_checkpointing() -> dict[str, Any]:
    """Return arguments of `gradient_checkpointing_enable` with which only cheap operations run twice.

    Gradients and statistics are those of a step without checkpointing.

    Returns:
        The `gradient_checkpointing_kwargs` of that method.

    Example:
        >>> from svit_hf import SViTConfig, SViTForImageClassification
        >>> from svit_hf.training.recomputation import selective_checkpointing
        >>> model = SViTForImageClassification(SViTConfig(num_labels=10))
        >>> model.gradient_checkpointing_enable(selective_checkpointing())
    """
    return {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, _choose)}


def _choose(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    is_projection = operator is _aten.convolution.default and arguments[1].shape[2:] == (1, 1)
    return CheckpointPolicy.MUST_SAVE if is_projection or operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
