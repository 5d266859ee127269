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

import math
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoModelForImageSegmentation, PreTrainedConfig
from transformers import initialization as init

# Transformers 5.5 fetches the files that this one imports, and not those that they import
from .ablations_svit import swap_parts  # noqa: F401
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig
from .modeling_svit import SViTBackbone
from .own_code_svit import write_code  # noqa: F401
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
        num_position_frequencies: With how many frequencies features of pixels say where these are; with 0 they do not,
            as published.
    """

    model_type = "svit_mask2former"

    num_position_frequencies: int = 0

    def validate_frequencies(self) -> None:
        """Raise `ValueError` if the number of frequencies is out of range."""
        if not 0 <= self.num_position_frequencies <= 12:
            raise ValueError(f"`num_position_frequencies` is {self.num_position_frequencies}; allowed are 0 to 12.")


class PlacedProjection(nn.Conv2d):
    """A 1x1 convolution of Mask2Former's pixel decoder, plus what it learns of where a pixel is.

    A mask is where a query's vector agrees with the embeddings of the pixels. The pixel decoder shows positions to its
    attention weights alone and never to its values; so objects that look the same have the same embeddings, and every
    query has all of them in its mask, unless a large backbone has learned positions from the borders of the picture.
    Here the features that the decoder reads have them, so that all pixels of an object can learn where its centre is,
    and so have the embeddings.

    Source: coordinates as channels are those of CoordConv (Liu et al. 2018, arXiv 1807.03247) and SOLO (Wang et al.
        2019, arXiv 1912.04488, section 3.1); waves of them, along both axes and both diagonals, are ours.
    """

    def __init__(self, in_channels: int, out_channels: int, num_frequencies: int):
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.num_frequencies = num_frequencies
        self.positions = nn.Conv2d(8 * num_frequencies, out_channels, kernel_size=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `(B, out_channels, height, width)` for features `(B, in_channels, height, width)`."""
        # the centres of the pixels, from -1 to 1 over the picture
        y, x = (
            (torch.arange(edge, device=features.device, dtype=features.dtype) * 2 + 1) / edge - 1
            for edge in features.shape[-2:]
        )
        rows, columns = y[:, None].expand(len(y), len(x)), x.expand(len(y), len(x))
        directions = torch.stack([columns, rows, (columns + rows) / 2, (columns - rows) / 2])
        # 1/2, 1, 2, 4, ... waves over the picture
        waves = 2.0 ** torch.arange(self.num_frequencies, device=features.device, dtype=features.dtype)
        angles = (math.pi / 2 * waves[:, None, None, None] * directions).flatten(0, 1)
        return super().forward(features) + self.positions(torch.cat([angles.sin(), angles.cos()])[None])


class Mask2FormerForUniversalSegmentation(_Head, transformers.Mask2FormerForUniversalSegmentation):
    """Mask2Former on an SViT."""

    config_class = Mask2FormerConfig
    _auto_class = "AutoModelForUniversalSegmentation"

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        if config.num_position_frequencies:
            decoder = self.model.pixel_level_module.decoder
            decoder.mask_projection = self._placed(decoder.mask_projection)
            for level in decoder.input_projections:
                level[0] = self._placed(level[0])

    def _placed(self, convolution: nn.Conv2d) -> PlacedProjection:
        placed = PlacedProjection(
            convolution.in_channels, convolution.out_channels, self.config.num_position_frequencies
        )
        self._init_weights(placed)
        return placed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as Transformers does; positions start with a standard deviation of 1.4."""
        super()._init_weights(module)
        if isinstance(module, PlacedProjection):
            init.normal_(module.positions.weight, std=2 / math.sqrt(module.positions.in_channels))


class DFineConfig(_OnSViT, transformers.DFineConfig):
    """Architecture of D-FINE on an SViT."""

    model_type = "svit_d_fine"


class DFineForObjectDetection(_Head, transformers.DFineForObjectDetection):
    """D-FINE on an SViT."""

    config_class = DFineConfig
    _auto_class = "AutoModelForObjectDetection"


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
