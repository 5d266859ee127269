# SPDX-License-Identifier: Apache-2.0
"""The heads: for which task each is, how its sizes follow from the backbone's, and which processor goes with it.

Source: where a value is not a default of Transformers, UperNet's are those that mmsegmentation documents (auxiliary
head on stage 3, 512 and 256 channels), which the group of the paper's authors uses in later work.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.loss import loss_for_object_detection
from transformers.models.mask2former import modeling_mask2former
from transformers.models.maskformer import modeling_maskformer

from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.dense_heads_svit import HEADS as CLASSES


IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# of masks: pixels that count neither in the loss nor in the metric
IGNORED = 255
# norms of the mask heads and of Deformable DETR have so many groups
WIDTH_STEP = 32


@dataclass(frozen=True)
class Head:
    """A head of Transformers on an SViT.

    Attributes:
        name: Its name in `HEADS`, and that of its classes in `svit_hf.model.dense_heads_svit`.
        tasks: The tasks that it is for.
        stages: Stages of the backbone that it reads.
        width: Its channels, where nothing else is asked for.
        sizes: Function of the backbone's config and the width to the fields of the head's config.
        processor: Name of its image processor in Transformers.
        processor_options: What that processor needs beyond size and normalisation.
        freezes_batch_norms: "always", "option" (a field of the config), or "never".
        num_extra_levels: Feature maps that it makes of the last stage's, each with half the height and width.
    """

    name: str
    tasks: tuple[str, ...]
    stages: tuple[int, ...]
    width: int
    sizes: Callable[[SViTConfig, int], dict[str, Any]]
    processor: str
    processor_options: dict[str, Any]
    freezes_batch_norms: str
    num_extra_levels: int = 0

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """Class of its config."""
        return CLASSES[self.name][0]

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """Class of its models."""
        return CLASSES[self.name][1]

    def make_config(
        self, backbone: SViTConfig, labels: Sequence[str], width: int | None, options: dict[str, Any]
    ) -> PreTrainedConfig:
        """Return a config of the head; `options` are fields of it, and win.

        Raises:
            SViTError: If a field is unknown or its value not possible, or `width` no multiple of 32.
        """
        width = width or self.width
        if width % WIDTH_STEP or width < 1:
            raise SViTError(f"`width` is {width}; allowed are multiples of {WIDTH_STEP}.")
        names = {field.name for field in fields(self.config_class)} - {
            field.name for field in fields(PreTrainedConfig)
        }
        if unknown := sorted(options.keys() - names):
            raise SViTError(f"the head {self.name!r} has no option {unknown[0]!r}; it has {sorted(names)}.")
        names_of_labels = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
        values: dict[str, Any] = {"backbone_config": backbone, **self.sizes(backbone, width)}
        try:
            return self.config_class(**(values | names_of_labels | options))
        except (ValueError, StrictDataclassError) as error:
            raise SViTError(
                f"`head_options` {options} are not possible for the head {self.name!r}: {error}"
            ) from error

    def require_size(self, size: tuple[int, int], width: int | None) -> None:
        """Refuse images so small that a norm of the head would see one value: of a map of one pixel, with one channel.

        Raises:
            SViTError: If height and width, in pixels, are that small.
        """
        stride = 32 * 2**self.num_extra_levels
        if self.num_extra_levels and max(size) <= stride and (width or self.width) == WIDTH_STEP:
            raise SViTError(
                f"`image_size` is {size} and `width` is {width}: the last feature map of the head {self.name!r} would "
                "be one pixel, with one channel for each group of its norm. Allowed are images of more than "
                f"{stride} pixels, or a width of {2 * WIDTH_STEP} or more."
            )

    def make_processor(self, size: tuple[int, int]) -> BaseImageProcessor:
        """Return what prepares pictures as the tasks do: resized to exactly `size`, ImageNet's normalisation."""
        backend = "" if find_spec("torchvision") else "Pil"
        return getattr(transformers, self.processor + backend)(
            size={"height": size[0], "width": size[1]},
            do_normalize=True,
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
            **self.processor_options,
        )


def _upernet(backbone: SViTConfig, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "auxiliary_in_channels": backbone.hidden_sizes[-2],
        "auxiliary_channels": width // 2,
        "loss_ignore_index": IGNORED,
    }


def _maskformer(backbone: SViTConfig, width: int) -> dict[str, Any]:
    # the decoder's config wants a backbone, which is never built
    unused: dict[str, Any] = {"out_features": ["stage4"]}
    decoder = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**unused), **_transformer(backbone, width)
    )
    return {"fpn_feature_size": width, "mask_feature_size": width, "decoder_config": decoder}


def _mask2former(backbone: SViTConfig, width: int) -> dict[str, Any]:
    return {
        "feature_size": width,
        "mask_feature_size": width,
        "hidden_dim": width,
        "encoder_feedforward_dim": 4 * width,
        "dim_feedforward": 8 * width,
        "ignore_value": IGNORED,
    }


def _transformer(backbone: SViTConfig, width: int) -> dict[str, Any]:
    return {"d_model": width, "encoder_ffn_dim": 8 * width, "decoder_ffn_dim": 8 * width}


def _deformable(backbone: SViTConfig, width: int) -> dict[str, Any]:
    # a fourth level is made of the third
    return {"d_model": width, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, "num_feature_levels": 4}


def _real_time(backbone: SViTConfig, width: int) -> dict[str, Any]:
    return {
        "encoder_in_channels": list(backbone.hidden_sizes[1:]),
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": 4 * width,
        "d_model": width,
        "decoder_in_channels": [width] * 3,
        "decoder_ffn_dim": 4 * width,
    }


_SEMANTIC, _INSTANCE, _DETECTION = "semantic_segmentation", "instance_segmentation", "detection"
_ALL_STAGES, _LAST_THREE, _LAST = (1, 2, 3, 4), (2, 3, 4), (4,)
_MASKS = {"ignore_index": IGNORED, "do_reduce_labels": False}

# the first of a task is its default
HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("upernet", (_SEMANTIC,), _ALL_STAGES, 512, _upernet, "SegformerImageProcessor", {}, "never"),
        Head(
            "mask2former",
            (_SEMANTIC, _INSTANCE),
            _ALL_STAGES,
            256,
            _mask2former,
            "Mask2FormerImageProcessor",
            _MASKS,
            "never",
        ),
        Head("maskformer", (_SEMANTIC,), _ALL_STAGES, 256, _maskformer, "MaskFormerImageProcessor", _MASKS, "never"),
        Head("d_fine", (_DETECTION,), _LAST_THREE, 256, _real_time, "RTDetrImageProcessor", {}, "option"),
        Head("rt_detr_v2", (_DETECTION,), _LAST_THREE, 256, _real_time, "RTDetrImageProcessor", {}, "option"),
        Head(
            "deformable_detr",
            (_DETECTION,),
            _LAST_THREE,
            256,
            _deformable,
            "DeformableDetrImageProcessor",
            {"do_pad": False},
            "always",
            num_extra_levels=1,
        ),
        Head(
            "conditional_detr",
            (_DETECTION,),
            _LAST,
            256,
            _transformer,
            "ConditionalDetrImageProcessor",
            {"do_pad": False},
            "always",
        ),
        Head("detr", (_DETECTION,), _LAST, 256, _transformer, "DetrImageProcessor", {"do_pad": False}, "always"),
    )
}


@contextmanager
def counting_own_objects() -> Iterator[None]:
    """Have losses of Transformers divide by the objects of a batch, and not by what ranks have on average.

    What an update computes would otherwise depend on which micro-batches meet on different ranks; and the average is
    too small by the number of ranks, since it is divided by that twice.
    """
    modules: tuple[Any, ...] = (loss_for_object_detection, modeling_mask2former, modeling_maskformer)
    before = [module.is_accelerate_available for module in modules]
    for module in modules:
        module.is_accelerate_available = lambda: False
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module.is_accelerate_available = function


def find_head(task: str, name: str | None) -> Head:
    """Return a head by name, or the default of a task.

    Raises:
        SViTError: If the task or the head is unknown, or the head is not for the task.
    """
    tasks = {
        known: [head for head in HEADS.values() if known in head.tasks] for known in (_SEMANTIC, _INSTANCE, _DETECTION)
    }
    if task not in tasks:
        raise SViTError(f"`task` is {task!r}; allowed are {list(tasks)}.")
    for head in tasks[task]:
        if name in (None, head.name):
            return head
    raise SViTError(f"`head` is {name!r}; for {task!r} allowed are {[head.name for head in tasks[task]]}.")
