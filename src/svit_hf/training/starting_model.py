# SPDX-License-Identifier: Apache-2.0
"""The model that training starts from, and its image processor."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import load_and_compare, load_image_processor
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTBackbone, SViTDropPath, SViTForImageClassification
from svit_hf.training.options import ModelOptions
from svit_hf.training.recomputation import selective_checkpointing


# what the weights to start from are called
START = "model.name_or_path"
TINY: dict[str, Any] = {
    "hidden_sizes": [32, 64, 128, 192],
    "depths": [1, 2, 3, 1],
    "num_attention_heads": [1, 2, 4, 6],
    "super_token_sizes": [8, 4, 1, 1],
    "projection_dim": 384,
}


def make_model(options: ModelOptions, label_names: Sequence[str], seed: int) -> SViTForImageClassification:
    """Return the model of a recipe, with a classifier for the labels of the data.

    Raises:
        SViTError: If the weights cannot be loaded, are not those of an SViT classifier, or fields do not fit.
    """
    torch.manual_seed(seed)
    fields = {"image_size": options.image_size, **options.config}
    if not options.name_or_path:
        names = {name: index for index, name in enumerate(label_names)}
        config = make_config(options, id2label=dict(enumerate(label_names)), label2id=names)
        return SViTForImageClassification(config)
    model, _ = load_and_compare(options.name_or_path, argument=START, **fields)
    if not isinstance(model, SViTForImageClassification):
        raise SViTError(
            f"`model.name_or_path` is {options.name_or_path!r}, which is a {type(model).__name__}; expected is an "
            "SViT classifier."
        )
    try:
        model.set_labels(label_names)
    except ValueError as error:
        raise SViTError(f"the labels of the data do not make a classifier: {error}") from error
    return model


def make_config(options: ModelOptions, **labels: Any) -> SViTConfig:
    """Return the architecture of a recipe that starts from random weights.

    Raises:
        SViTError: If the fields do not go together.
    """
    try:
        fields = {"image_size": options.image_size, **options.config, **labels}
        if options.layout == "tiny":
            return SViTConfig(**TINY | fields)
        config: SViTConfig = getattr(SViTConfig, options.layout)(**fields)
    except (ValueError, StrictDataclassError) as error:
        raise SViTError(f"`model.config` does not describe a model: {error}") from error
    return config


def make_image_processor(options: ModelOptions) -> SViTImageProcessorPil:
    """Return what prepares images for the trained model, and does so in every evaluation.

    Mean and standard deviation are those of the weights that training starts from.
    """
    settings: dict[str, Any] = {"size": {"shortest_edge": options.image_size}, "crop_pct": options.crop_pct}
    if options.name_or_path:
        start = load_image_processor(options.name_or_path, START)
        settings |= {"image_mean": list(start.image_mean), "image_std": list(start.image_std)}
    return SViTImageProcessorPil(**settings)


def freeze(model: nn.Module, options: ModelOptions) -> None:
    """Take out of training what the recipe says, and set the mode in which the rest trains.

    Raises:
        SViTError: If the model is no SViT and has to be frozen in part.
    """
    if options.freeze_backbone or options.freeze_batch_norm or options.gradient_checkpointing != "off":
        # the model itself, or the backbone of a head
        found = [m for m in model.modules() if isinstance(m, (SViTForImageClassification, SViTBackbone))]
        if not found:
            raise SViTError(
                "`model.freeze_backbone`, `model.freeze_batch_norm` and `model.gradient_checkpointing` are for SViT "
                f"classifiers and heads on an SViT; this is a {type(model).__name__}."
            )
        if options.freeze_batch_norm:
            found[0].freeze_batch_norm()
        if options.freeze_backbone:
            # afterwards: freezing the statistics of a norm lets its weights train
            found[0].svit.requires_grad_(False)
        if options.gradient_checkpointing != "off":
            is_selective = options.gradient_checkpointing == "selective"
            kwargs = selective_checkpointing() if is_selective else None
            found[0].gradient_checkpointing_enable(kwargs)  # type: ignore[no-untyped-call]
    model.train(not options.eval_mode)


def require_batch_for_norms(
    model: nn.Module, num_images: int, image_shape: tuple[int, int], device: torch.device
) -> None:
    """Refuse batches of one image where a batch norm would see a single value per channel.

    Raises:
        SViTError: If they are so small.
    """
    if num_images > 1:
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *image_shape, device=device))
    except ValueError as error:
        raise SViTError(
            "`optimization.batch_size` and `optimization.device_batch_size` leave 1 image to a step of each rank; it "
            f"has to be 2 at least for batch norms at `model.image_size` {image_shape}, or `model.freeze_batch_norm`."
        ) from error
    finally:
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)


def set_drop_path_rate(model: nn.Module, rate: float) -> None:
    """Let the drop path rate grow linearly over all layers from 0 to `rate`, as a config does at the start."""
    layers = [module for module in model.modules() if isinstance(module, SViTDropPath)]
    for index, layer in enumerate(layers):
        layer.rate = rate * index / max(len(layers) - 1, 1)
