# SPDX-License-Identifier: Apache-2.0
"""One forward pass over one picture, and everything that the drawings of this folder are made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.hub.remote_code import default_image_processor
from svit_hf.model.cells_svit import token_grids


# in each direction, of a map that Grad-CAM weights
LEAST_PLACES = 3


@dataclass(frozen=True, kw_only=True)
class LayerRecording:
    """What one layer did with a picture.

    Attributes:
        stage: Its stage, from 1.
        layer: Its place in the stage, from 1.
        grid: `(H, W)` of the tokens.
        cell_size: `(h, w)` of a cell in tokens; `(1, 1)` where all tokens attend to each other without super tokens.
        association: Shares of the tokens in the super tokens around them, shape `(G, P, 9)`, see `SuperTokens`; `None`
            where the cell is 1.
        attention: Weights among super tokens, shape `(A, G, G)`; among tokens where the cell is 1. Rows sum to 1.
        queries: What each token would ask if it attended by itself, shape `(A, H * W, D)`, scaled.
        keys: What it would answer, shape `(A, H * W, D)`.
    """

    stage: int
    layer: int
    grid: tuple[int, int]
    cell_size: tuple[int, int]
    association: torch.Tensor | None
    attention: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor

    @property
    def super_token_grid(self) -> tuple[int, int]:
        """`(Gh, Gw)`, how many cells there are below each other and side by side."""
        return -(-self.grid[0] // self.cell_size[0]), -(-self.grid[1] // self.cell_size[1])


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a model did with a picture.

    Attributes:
        view: The picture as the model saw it, resized and cropped.
        layers: One per layer, in their order.
        probabilities: Of the classes, shape `(num_labels,)`; `None` for a model without a classifier.
        labels: Names of the classes.
        target: The class that `reliance` is about; `None` without a classifier.
        reliance: How much each place of a stage speaks for the target by Grad-CAM, shape `(H, W)`, at least 0; `None`
            where it was not asked for.
    """

    view: Image.Image
    layers: tuple[LayerRecording, ...]
    probabilities: torch.Tensor | None = None
    labels: tuple[str, ...] = ()
    target: int | None = None
    reliance: torch.Tensor | None = None

    def layer(self, stage: int, layer: int) -> LayerRecording:
        """Return what a layer did; both numbers count from 1, and from the end if they are negative.

        Raises:
            ValueError: If there is no such layer.
        """
        of_stage: dict[int, list[LayerRecording]] = {}
        for recorded in self.layers:
            of_stage.setdefault(recorded.stage, []).append(recorded)
        stage = stage if stage > 0 else len(of_stage) + 1 + stage
        if stage not in of_stage:
            raise ValueError(f"`stage` is {stage}; the model has the stages 1 to {len(of_stage)}.")
        layers = of_stage[stage]
        if not 1 <= abs(layer) <= len(layers):
            raise ValueError(f"`layer` is {layer}; stage {stage} has the layers 1 to {len(layers)}.")
        return layers[layer - 1 if layer > 0 else layer]


def record(
    model: PreTrainedModel,
    image: Image.Image | torch.Tensor,
    processor: Any = None,
    *,
    reliance: bool = False,
    label: str | None = None,
    reliance_stage: int | None = None,
) -> Recording:
    """Run a model on a picture once, and keep what the drawings need.

    Args:
        model: `SViTForImageClassification`, `SViTModel` or `SViTBackbone`. It is run as it is in evaluation mode, and
            left as it was.
        image: A picture of any size and mode; or pixel values, shape `(3, height, width)` or `(1, 3, height, width)`,
            normalised as `processor` does it.
        processor: The model's image processor. By default the official preprocessing at the size of the model's
            config.
        reliance: Whether to find out what the classifier relies on, which takes a backward pass and captum.
        label: The class that is about; the likeliest one if `None`.
        reliance_stage: The stage whose map Grad-CAM weights, from 1, or from the end if negative: later ones are
            closer to the answer, earlier ones are finer. By default the last one with 3x3 places or more.

    Raises:
        SViTError: If the model is no SViT, or has no such class or stage.
    """
    config: Any = model.config
    if getattr(config, "model_type", None) != "svit":
        raise SViTError(f"`model` is of the kind {config.model_type!r}; only SViT has super tokens.")
    if set(config.stage_attention_kinds) - {"super_tokens", "global"} or config.super_token_mixer != "attention":
        raise SViTError(
            f"`model` has `attention_kinds`={config.attention_kinds} and `super_token_mixer`="
            f"{config.super_token_mixer!r}; only super tokens that attend to each other can be looked at."
        )
    processor = processor or default_image_processor(config)
    if isinstance(image, torch.Tensor):
        pixel_values = image
    else:
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    if pixel_values.ndim == 3:
        pixel_values = pixel_values.unsqueeze(0)
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(f"`image` has the shape {tuple(pixel_values.shape)}; it has to be one picture.")
    pixel_values = pixel_values.to(model.device)
    names: dict[Any, str] = config.id2label or {}
    labels = tuple(names[number] for number in sorted(names))
    if label is not None and label not in labels:
        raise SViTError(f"`label` is {label!r}; the classes are {', '.join(labels)}.")
    target = None if label is None else labels.index(label)
    relied_on = None
    with _recording_mode(model) as tokens:
        if reliance:
            outputs, relied_on = _forward_with_grad_cam(model, pixel_values, target, reliance_stage)
        else:
            with torch.no_grad():
                outputs = _forward(model, pixel_values)
    logits = getattr(outputs, "logits", None)
    probabilities = None if logits is None or not labels else logits[0].detach().float().softmax(dim=-1).cpu()
    if target is None and probabilities is not None:
        target = int(probabilities.argmax())
    return Recording(
        view=_denormalize(pixel_values[0], processor),
        layers=tuple(_layers(model, outputs, tokens)),
        probabilities=probabilities,
        labels=labels if probabilities is not None else (),
        target=target,
        reliance=relied_on,
    )


def _forward(model: PreTrainedModel, pixel_values: torch.Tensor) -> Any:
    return model(pixel_values, output_attentions=True, output_associations=True, return_dict=True)


def _forward_with_grad_cam(
    model: PreTrainedModel, pixel_values: torch.Tensor, target: int | None, stage: int | None
) -> tuple[Any, torch.Tensor]:
    """Return the outputs, and the map `(H, W)`: Grad-CAM of a stage, for a class or for the likeliest one."""
    # seconds pass while it is imported, and it is optional
    from captum.attr import LayerGradCam

    if not hasattr(model, "classifier"):
        raise SViTError(f"`model` is a {type(model).__name__}, which has no classifier that could rely on something.")
    stages = _base(model).stages
    if stage is None:
        # in small pictures the last map has a place or two, which say nothing of where
        grids = token_grids(pixel_values.shape[-2:], len(stages))
        stage = max((number for number, grid in enumerate(grids, 1) if min(grid) >= LEAST_PLACES), default=1)
    if not 1 <= abs(stage) <= len(stages):
        raise SViTError(f"`reliance_stage` is {stage}; the model has the stages 1 to {len(stages)}.")
    kept: list[Any] = []

    def score(pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = _forward(model, pixel_values)
        kept.append(outputs)
        logits: torch.Tensor = outputs.logits
        # the likeliest class is not known before the forward pass, and there shall be no second one
        return logits.amax(dim=-1) if target is None else logits[:, target]

    grad_cam = LayerGradCam(score, stages[stage - 1 if stage > 0 else stage])
    # where the caller has switched gradients off for good, tensors made there have none either
    with torch.inference_mode(False):
        found = grad_cam.attribute(pixel_values.clone(), relu_attributions=True)
    return kept[-1], found[0, 0].detach().float().cpu()


@contextmanager
def _recording_mode(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Make a model return attention weights, and yield a list that gets the normalised tokens, `(B, H, W, C)` each."""
    was_training, attention = model.training, model.config._attn_implementation
    tokens: list[torch.Tensor] = []
    handles = []
    for layer in (layer for stage in _base(model).stages for layer in stage.layers):
        # the only one of a layer is what super tokens are sampled from
        norm = next(module for module in layer.modules() if isinstance(module, nn.LayerNorm))
        handles.append(norm.register_forward_hook(lambda module, arguments, output: tokens.append(output.detach())))
    model.eval()
    model.set_attn_implementation("eager")
    try:
        yield tokens
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)
        for handle in handles:
            handle.remove()


def _layers(model: PreTrainedModel, outputs: Any, tokens: list[torch.Tensor]) -> Iterator[LayerRecording]:
    base = _base(model)
    attentions, associations = iter(outputs.attentions), iter(outputs.associations or ())
    remaining = iter(tokens)
    for stage_number, stage in enumerate(base.stages, 1):
        for layer_number, layer in enumerate(stage.layers, 1):
            of_layer = next(remaining)
            cell_size = tuple(layer.attention.cell_size)
            queries, keys = _queries_and_keys(layer.attention.self_attention, of_layer)
            yield LayerRecording(
                stage=stage_number,
                layer=layer_number,
                grid=(of_layer.shape[1], of_layer.shape[2]),
                cell_size=(cell_size[0], cell_size[1]),
                association=None if cell_size == (1, 1) else next(associations)[0].detach().float().cpu(),
                attention=next(attentions)[0].detach().float().cpu(),
                queries=queries,
                keys=keys,
            )


@torch.no_grad()
def _queries_and_keys(attention: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled queries and keys of all tokens, `(A, H * W, D)` each, of tokens `(1, H, W, C)`."""
    # the channels of qkv are head-major: D of query, D of key, D of value for each head
    packed = attention.qkv(tokens.permute(0, 3, 1, 2))[0].flatten(1).float().cpu()  # (A * 3 * D, N)
    packed = packed.view(attention.num_heads, 3, attention.head_dim, -1).transpose(2, 3)  # (A, 3, N, D)
    return packed[:, 0] * attention.scaling, packed[:, 1]


def _base(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix, model)


def _denormalize(pixel_values: torch.Tensor, processor: Any) -> Image.Image:
    """Return the picture that `(C, height, width)` pixel values show."""
    values = pixel_values.detach().float().cpu()
    if getattr(processor, "do_normalize", True):
        mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        values = values * std + mean
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels))
