# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' heads for segmentation and detection on an SViT backbone.

Each class is the one of the same name in Transformers, and computes the same, but for what an option of its config
adds, which is off in a plain config. What differs: its config makes the
nested backbone an `SViTConfig` by itself, so that a folder loads where nothing else knows of SViT; and saving a model
copies this file and what it imports beside the weights, by Transformers' own means for code on the Hub. The names
stay, because pipelines and losses are chosen by them; the model types are new, because those of Transformers would win
over the code of a folder.
"""

from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoModelForImageSegmentation, PreTrainedConfig
from transformers.utils.generic import can_return_tuple

# Transformers 5.5 fetches the files that this one imports, and not those that they import
from .ablations_svit import swap_parts  # noqa: F401
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig
from .modeling_svit import SViTBackbone
from .own_code_svit import write_code  # noqa: F401
from .placed_queries_svit import AllPixelsLoss, PlacedDecoder, center_loss
from .samplers_svit import CosineSampler  # noqa: F401
from .super_tokens_svit import SUPER_TOKEN_SAMPLERS  # noqa: F401


class _OnSViT:
    """What the configs share: the backbone is an SViT."""

    _auto_class: ClassVar[str | None] = "AutoConfig"
    # Mask2Former and MaskFormer warn of any other; a config without arguments, which is made to compare with, has swin
    backbones_supported: ClassVar[list[str]] = ["svit", "swin"]

    def __post_init__(self, **kwargs: Any) -> None:
        config: Any = self
        if isinstance(config.backbone_config, dict):
            config.backbone_config = SViTConfig(**config.backbone_config)
        super().__post_init__(**kwargs)  # type: ignore[misc]


class _Head:
    """What the models share: the loss is a mean already."""

    # they accept any keyword, from which Trainer concludes that they divide by `num_items_in_batch`; they do not, and
    # accumulated gradients would be too large by the number of micro-batches
    accepts_loss_kwargs = False


class UperNetConfig(_OnSViT, transformers.UperNetConfig):
    """Architecture of UperNet on an SViT."""

    model_type = "svit_upernet"


class UperNetForSemanticSegmentation(_Head, transformers.UperNetForSemanticSegmentation):
    """UperNet on an SViT."""

    config_class = UperNetConfig
    _auto_class = "AutoModelForSemanticSegmentation"

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Compute logits `(B, num_labels, height, width)`, and a loss from `labels`, `(B, height, width)`.

        Where every pixel of a batch is ignored the loss is 0; Transformers gives the mean of nothing.
        """
        if labels is None:
            return super().forward(pixel_values, **kwargs)
        is_labelled = (labels != self.config.loss_ignore_index).any()
        outputs = super().forward(pixel_values, labels=torch.where(is_labelled, labels, 0), **kwargs)
        if isinstance(outputs, tuple):
            return (outputs[0] * is_labelled, *outputs[1:])
        outputs.loss = outputs.loss * is_labelled
        return outputs


class MaskFormerConfig(_OnSViT, transformers.MaskFormerConfig):
    """Architecture of MaskFormer on an SViT."""

    model_type = "svit_maskformer"


class MaskFormerForInstanceSegmentation(_Head, transformers.MaskFormerForInstanceSegmentation):
    """MaskFormer on an SViT."""

    config_class = MaskFormerConfig
    _auto_class = "AutoModelForInstanceSegmentation"


@strict
class Mask2FormerConfig(_OnSViT, transformers.Mask2FormerConfig):
    """Architecture of Mask2Former on an SViT.

    Args:
        places_queries: Whether queries start at pixels of the picture where the centre of an object seems to be, and
            masks at discs about them. As published they do not.
    """

    model_type = "svit_mask2former"

    places_queries: bool = False


class Mask2FormerForUniversalSegmentation(_Head, transformers.Mask2FormerForUniversalSegmentation):
    """Mask2Former on an SViT."""

    config_class = Mask2FormerConfig
    _auto_class = "AutoModelForUniversalSegmentation"

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        if config.places_queries:
            decoder = PlacedDecoder(config)
            decoder.apply(self._init_weights)
            self.model.transformer_module.decoder = decoder
            self.criterion = AllPixelsLoss(config, self.weight_dict)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Compute masks and classes of queries, and a loss from `mask_labels` and `class_labels`."""
        outputs = super().forward(pixel_values, **kwargs)
        if self.config.places_queries and kwargs.get("mask_labels") is not None:
            scores = self.model.transformer_module.decoder.centers(outputs.pixel_decoder_last_hidden_state)
            outputs.loss = outputs.loss + center_loss(scores, kwargs["mask_labels"])
        return outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as Transformers does, and what starts from a certain state with that."""
        super()._init_weights(module)
        if isinstance(module, PlacedDecoder):
            module.reset()


@strict
class DFineConfig(_OnSViT, transformers.DFineConfig):
    """Architecture of D-FINE on an SViT.

    Args:
        max_overlap: Largest intersection over union of two boxes of a class; where it is larger, the one with the
            lower score is none of that class. 1 keeps all boxes, as published.
    """

    model_type = "svit_d_fine"

    max_overlap: float | int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 < self.max_overlap <= 1:
            raise ValueError(f"`max_overlap` is {self.max_overlap}; allowed is above 0 to 1.")


class DFineForObjectDetection(_Head, transformers.DFineForObjectDetection):
    """D-FINE on an SViT."""

    config_class = DFineConfig
    _auto_class = "AutoModelForObjectDetection"

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Compute logits and boxes of queries, and a loss from `labels`, which sees all boxes."""
        outputs = super().forward(pixel_values, **kwargs)
        if not self.training and self.config.max_overlap < 1:
            is_double = find_doubles(outputs.logits, outputs.pred_boxes, self.config.max_overlap)
            # sigmoid makes 0 of it
            outputs.logits = outputs.logits.masked_fill(is_double, torch.finfo(outputs.logits.dtype).min)
        return outputs


class RTDetrV2Config(_OnSViT, transformers.RTDetrV2Config):
    """Architecture of RT-DETRv2 on an SViT."""

    model_type = "svit_rt_detr_v2"


class RTDetrV2ForObjectDetection(_Head, transformers.RTDetrV2ForObjectDetection):
    """RT-DETRv2 on an SViT."""

    config_class = RTDetrV2Config
    _auto_class = "AutoModelForObjectDetection"


class DetrConfig(_OnSViT, transformers.DetrConfig):
    """Architecture of DETR on an SViT."""

    model_type = "svit_detr"


class DetrForObjectDetection(_Head, transformers.DetrForObjectDetection):
    """DETR on an SViT."""

    config_class = DetrConfig
    _auto_class = "AutoModelForObjectDetection"


class ConditionalDetrConfig(_OnSViT, transformers.ConditionalDetrConfig):
    """Architecture of Conditional DETR on an SViT."""

    model_type = "svit_conditional_detr"


class ConditionalDetrForObjectDetection(_Head, transformers.ConditionalDetrForObjectDetection):
    """Conditional DETR on an SViT."""

    config_class = ConditionalDetrConfig
    _auto_class = "AutoModelForObjectDetection"


class DeformableDetrConfig(_OnSViT, transformers.DeformableDetrConfig):
    """Architecture of Deformable DETR on an SViT."""

    model_type = "svit_deformable_detr"


class DeformableDetrForObjectDetection(_Head, transformers.DeformableDetrForObjectDetection):
    """Deformable DETR on an SViT."""

    config_class = DeformableDetrConfig
    _auto_class = "AutoModelForObjectDetection"


def find_doubles(logits: torch.Tensor, boxes: torch.Tensor, max_overlap: float) -> torch.Tensor:
    """Return which boxes overlap one with a higher logit of the same class by more than `max_overlap`.

    A box counts for those below it, even if another one is above it (Fast NMS, section 4.1 of arXiv 1904.02689).

    Args:
        logits: Of queries and classes, `(B, N, C)`.
        boxes: Centre, width and height, `(B, N, 4)`.
        max_overlap: Intersection over union.

    Returns:
        Bool, `(B, N, C)`.
    """
    lower, upper = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    edges = torch.minimum(upper[:, :, None], upper[:, None]) - torch.maximum(lower[:, :, None], lower[:, None])
    shared, areas = edges.clamp(min=0).prod(-1), boxes[..., 2:].prod(-1)
    overlaps = shared > max_overlap * (areas[:, :, None] + areas[:, None] - shared)
    return (overlaps[..., None] & (logits[:, :, None] > logits[:, None])).any(1)


HEADS: dict[str, tuple[type[PreTrainedConfig], type[transformers.PreTrainedModel]]] = {
    "upernet": (UperNetConfig, UperNetForSemanticSegmentation),
    "maskformer": (MaskFormerConfig, MaskFormerForInstanceSegmentation),
    "mask2former": (Mask2FormerConfig, Mask2FormerForUniversalSegmentation),
    "d_fine": (DFineConfig, DFineForObjectDetection),
    "rt_detr_v2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
    "detr": (DetrConfig, DetrForObjectDetection),
    "conditional_detr": (ConditionalDetrConfig, ConditionalDetrForObjectDetection),
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetection),
}


# by class and not by model type: copies of this file in several folders do not meet
AutoBackbone.register(SViTConfig, SViTBackbone, exist_ok=True)
for _config_class, _model_class in HEADS.values():
    getattr(transformers, str(_model_class._auto_class)).register(_config_class, _model_class, exist_ok=True)
    if "Segmentation" in _model_class.__name__:
        # pipelines try this class and AutoModelForSemanticSegmentation, and no other
        AutoModelForImageSegmentation.register(_config_class, _model_class, exist_ok=True)
