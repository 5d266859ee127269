# SPDX-License-Identifier: Apache-2.0
"""Models for dense tasks: a head of Transformers on an SViT, with pre-trained weights that verifiably arrived."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.dense_heads_svit import HEADS as CLASSES
from svit_hf.model.modeling_svit import SViTBackbone
from svit_hf.tasks.heads import Head, find_head


# of a saved config: Mask2Former is for two tasks
TASK_FIELD = "svit_task"
# every stage has whole pixels so, and the feature maps of neighbouring ones differ by exactly 2
SIZE_STEP = 32
SMALLEST_SIZE = 64
# geometric mean of height and width, in pixels, up to which cells stay as they are
LARGEST_SIDE = 544
# of features whose batch norms were replaced by frozen ones, relative to the largest; float32 gave 3e-7 at most
PROBE_TOLERANCE = 1e-4
# what may differ between a checkpoint and the backbone that takes its weights, since no weight depends on it
_FREE_FIELDS = {
    *("image_size", "super_token_sizes", "num_sampling_iterations", "super_token_sampler", "projection_dim"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "batch_norm_momentum"),
    *("layer_scale_init_value", "initializer_range", "normalize_features", "use_projection"),
    *("_out_features", "_out_indices"),
}

for _config_class, _ in CLASSES.values():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)


@dataclass(frozen=True)
class LoadedWeights:
    """Weights that arrived in a backbone.

    Attributes:
        num_tensors: Tensors that were copied; all that the backbone has.
        largest_difference: Of the feature maps of a probe image, between checkpoint and head, relative to the largest
            feature.
    """

    num_tensors: int
    largest_difference: float


def build_model(  # noqa: PLR0913 - what is built, of what, and for what
    task: str,
    backbone: str | os.PathLike[str] | SViTConfig,
    labels: Sequence[str],
    image_size: int | tuple[int, int],
    head: str | None = None,
    *,
    width: int | None = None,
    drop_path_rate: float | None = None,
    normalize_features: bool | None = None,
    head_options: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Build a model for segmentation or detection on an SViT.

    With pre-trained weights the batch norms of the backbone stay on their running statistics, since dense tasks train
    with few images at a time. Saving the model copies the code that it needs beside the weights.

    Args:
        task: "semantic_segmentation", "instance_segmentation" or "detection".
        backbone: Folder or Hub id of an SViT (classifier, backbone or base model), whose weights are taken; or a
            config, for random weights.
        labels: Names of the classes, one per class index of the data.
        image_size: Height and width that images are resized to, in pixels: one int or a pair, multiples of 32, at
            least 64.
        head: By name. Semantic: "upernet" (default), "mask2former", "maskformer"; instances: "mask2former"; detection:
            "d_fine" (default), "rt_detr_v2", "deformable_detr", "conditional_detr", "detr".
        width: Channels of the head, a multiple of 32; by default what the head was published with.
        drop_path_rate: Of the backbone; by default what its config says.
        normalize_features: Whether each feature map that the head reads has a layer norm, which starts anew; by
            default what the config of the backbone says.
        head_options: More fields of the head's config, such as `num_queries`.

    Returns:
        The model, in evaluation mode.

    Raises:
        SViTError: If an argument is not possible, or the weights did not arrive.
    """
    chosen = find_head(task, head)
    labels = check_labels(labels)
    size = check_image_size(image_size)
    chosen.require_size(size, width)
    is_random = isinstance(backbone, SViTConfig)
    if is_random and chosen.freezes_batch_norms == "always":
        raise SViTError(
            f"`backbone` is a config, for random weights, and the head {chosen.name!r} freezes the backbone's batch "
            "norms: without pre-trained weights they would normalise nothing, ever. Name a folder or Hub id with "
            "weights, or take the head 'd_fine'."
        )
    config = backbone if isinstance(backbone, SViTConfig) else _read_config(backbone)
    options = dict(head_options or {})
    if chosen.freezes_batch_norms == "option":
        options.setdefault("freeze_backbone_batch_norms", not is_random)
    if task == "instance_segmentation":
        options.setdefault("places_queries", True)
    changed = {"drop_path_rate": drop_path_rate, "normalize_features": normalize_features}
    nested = _backbone_config(config, chosen, size, changed)
    head_config = chosen.make_config(nested, labels, width, options)
    setattr(head_config, TASK_FIELD, task)
    model = chosen.model_class(head_config)
    if not isinstance(backbone, SViTConfig):
        load_backbone(model, backbone)
        if chosen.freezes_batch_norms == "never":
            backbone_of(model).freeze_batch_norm()
    model.train(False)
    return model


def load_backbone(head_model: PreTrainedModel, checkpoint: str | os.PathLike[str]) -> LoadedWeights:
    """Load pre-trained weights into the backbone of any head of Transformers, and verify that they arrived.

    Transformers builds a backbone from its config alone: without this its weights are random, whatever
    `use_pretrained_backbone` says.

    Args:
        head_model: A model that contains an `SViTBackbone`.
        checkpoint: Folder or Hub id of an SViT (classifier, backbone or base model).

    Raises:
        SViTError: If the model contains no SViT or several, if the checkpoint is another architecture or does not have
            every weight, or if the features of a probe image differ afterwards.
    """
    backbone = backbone_of(head_model)
    expected, found = backbone.config, _read_config(checkpoint)
    for field in fields(SViTConfig):
        name = field.name
        if name in {other.name for other in fields(PreTrainedConfig)} | _FREE_FIELDS:
            continue
        if getattr(expected, name) != getattr(found, name):
            raise SViTError(
                f"`checkpoint` {str(checkpoint)!r} has {name}={getattr(found, name)}, the backbone of the model "
                f"{getattr(expected, name)}; build the model from the config of the checkpoint."
            )
    source = _read_backbone(checkpoint, expected)
    backbone.load_state_dict(
        {name: tensor.to(backbone.dtype) for name, tensor in source.state_dict().items() if _is_in(name, backbone)}
    )
    difference = _probe(source, backbone)
    if not difference <= PROBE_TOLERANCE:
        raise SViTError(
            f"the features of a probe image differ by {difference:.1e} of the largest between `checkpoint` "
            f"{str(checkpoint)!r} and the model, more than {PROBE_TOLERANCE:.0e}: the backbone does not compute what "
            "the checkpoint does."
        )
    return LoadedWeights(len(backbone.state_dict()), difference)


def backbone_of(model: torch.nn.Module) -> SViTBackbone:
    """Return the SViT inside a model.

    Raises:
        SViTError: If there is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, SViTBackbone)]
    if len(found) != 1:
        raise SViTError(f"the {type(model).__name__} contains {len(found)} SViT backbones; expected is one.")
    return found[0]


def cells_for_image_size(config: SViTConfig, image_size: tuple[int, int]) -> list[int | list[int]]:
    """Return cells for dense inputs: larger images get larger cells, so that cost grows linearly with the pixels.

    All cells but the last stage's are multiplied by the smallest power of two that leaves at most 544 pixels of the
    geometric mean of height and width per unit: 8 4 1 1 up to 544 x 544, 16 8 2 1 up to 1088 x 1088. What the config's
    own `image_size` would ask for counts as given already. Weights do not depend on cells.

    Args:
        config: The backbone, with the cells that it was trained with.
        image_size: Height and width, in pixels.
    """
    own = config.image_size if not isinstance(config.image_size, int) else (config.image_size, config.image_size)
    growth = max(1, _growth(image_size) // _growth((own[0], own[1])))
    grown: list[int | list[int]] = [
        cell * growth if isinstance(cell, int) else [edge * growth for edge in cell]
        for cell in config.super_token_sizes[:-1]
    ]
    last = config.super_token_sizes[-1]
    return [*grown, last if isinstance(last, int) else list(last)]


def check_labels(labels: Sequence[str]) -> list[str]:
    """Return the names of classes as a list.

    Raises:
        SViTError: If there is none, one is no text or empty, or one is there twice.
    """
    if isinstance(labels, str) or not labels:
        raise SViTError(f"`labels` is {labels!r}; expected are the names of the classes, at least one.")
    names = list(labels)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise SViTError(f"`labels` has {name!r}; every class needs a name.")
        if names.count(name) > 1:
            raise SViTError(f"`labels` has {name!r} {names.count(name)} times; every class needs a name of its own.")
    return names


def check_image_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width, in pixels.

    Raises:
        SViTError: If one is below 64 or no multiple of 32.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or any(isinstance(edge, bool) or not isinstance(edge, int) for edge in pair):
        raise SViTError(f"`image_size` is {image_size!r}; allowed is one int, or a (height, width) pair, of pixels.")
    if min(pair) < SMALLEST_SIZE or any(edge % SIZE_STEP for edge in pair):
        raise SViTError(f"`image_size` is {image_size}; allowed are multiples of {SIZE_STEP} from {SMALLEST_SIZE} up.")
    return pair[0], pair[1]


def _growth(size: tuple[int, int]) -> int:
    growth = 1
    while (size[0] * size[1]) ** 0.5 > LARGEST_SIDE * growth:
        growth *= 2
    return growth


def _backbone_config(config: SViTConfig, head: Head, size: tuple[int, int], changed: dict[str, Any]) -> SViTConfig:
    if config.num_stages != 4:
        raise SViTError(f"`backbone` has {config.num_stages} stages; dense heads need 4.")
    nested = {field.name: getattr(config, field.name) for field in fields(SViTConfig)}
    for field in fields(PreTrainedConfig):
        nested.pop(field.name, None)
    nested = {name: value for name, value in nested.items() if not name.startswith("_")}
    nested["super_token_sizes"] = cells_for_image_size(config, size)
    nested["image_size"] = size[0] if size[0] == size[1] else list(size)
    nested["out_features"] = [f"stage{stage}" for stage in head.stages]
    nested |= {name: value for name, value in changed.items() if value is not None}
    return SViTConfig(**nested)


def _read_config(checkpoint: str | os.PathLike[str]) -> SViTConfig:
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        raise SViTError(f"{str(checkpoint)!r} has no config that can be read: {error}") from error
    if not isinstance(config, SViTConfig):
        raise SViTError(f"{str(checkpoint)!r} is of type {config.model_type!r}; a backbone has to be of type 'svit'.")
    return config


def _read_backbone(checkpoint: str | os.PathLike[str], config: SViTConfig) -> SViTBackbone:
    try:
        loaded: Any = SViTBackbone.from_pretrained(
            checkpoint, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise SViTError(f"the weights in {str(checkpoint)!r} cannot be loaded: {error}") from error
    backbone: SViTBackbone = loaded[0]
    report = loaded[1]
    lost = [*report["missing_keys"], *report["mismatched_keys"]]
    # no checkpoint has those of feature maps, which start as norms do
    lost = [name for name in lost if not str(name).startswith("feature_norms.")]
    if lost:
        raise SViTError(
            f"{len(lost)} of {len(backbone.state_dict())} tensors of the backbone are not in {str(checkpoint)!r} and "
            f"would stay random, {sorted(map(str, lost))[0]} for one; it is no whole SViT."
        )
    backbone.train(False)
    return backbone


def _is_in(name: str, backbone: SViTBackbone) -> bool:
    # frozen batch norms do not count batches; everything else has to be there
    return not name.endswith("num_batches_tracked") or name in backbone.state_dict()


@torch.no_grad()
def _probe(source: SViTBackbone, backbone: SViTBackbone) -> float:
    """Return the largest difference of feature maps, relative to the largest feature."""
    was_training = backbone.training
    pixels = torch.linspace(-2, 2, 3 * 64 * 64).sin().mul(40).sin().reshape(1, 3, 64, 64)
    pixels = pixels[:, :1].expand(1, backbone.config.num_channels, 64, 64)
    expected = source(pixels).feature_maps
    backbone.train(False)
    given = backbone(pixels.to(backbone.device, backbone.dtype)).feature_maps
    backbone.train(was_training)
    return max(
        float((one - other.cpu().float()).abs().max() / one.abs().max())
        for one, other in zip(expected, given, strict=True)
    )
