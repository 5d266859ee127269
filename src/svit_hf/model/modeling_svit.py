# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""SViT as Transformers models: base model, image classifier, backbone. Their layers are in `layers_svit.py`.

Method: "Vision Transformer with Super Token Sampling" (Huang et al., CVPR 2023, arXiv 2211.11167). Outputs and
gradients equal those of hhb072/STViT@c9ed9a4 with converted weights.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_svit import SViTConfig
from .implementation_svit import resolve_implementation
from .layers_svit import (
    SViTLayerScale,
    SViTPatchEmbeddings,
    SViTPooler,
    SViTSelfAttention,
    SViTStage,
    SViTSuperTokenAttention,
    set_super_token_implementation,
)


logger = logging.get_logger(__name__)


@dataclass
class SViTModelOutput(BaseModelOutputWithPooling):
    """Hold what `SViTModel` returns.

    Attributes:
        last_hidden_state: Feature map of the last stage, shape `(B, C, H, W)`, 1/32 of the image's size with four
            stages.
        pooler_output: Global descriptor, shape `(B, projection_dim)`.
        hidden_states: With `output_hidden_states=True`: the stem's feature map and every stage's, `(B, C, H, W)` each;
            a stage's is the one after its layers, before the next stage halves it.
        attentions: With `output_attentions=True` and eager attention: one per layer, `(B, A, G, G)`, attention among
            super tokens, or among all tokens where the cell is 1.
        super_tokens: With `output_super_tokens=True`: one per layer of the stages whose cell is larger than 1, sampled
            but not yet attended, `(B, C, Gh, Gw)`.
        associations: With `output_associations=True`: one per layer of the stages whose cell is larger than 1,
            `(B, G, P, 9)`, the share of each token of a cell in the 3x3 super tokens around it; see `SuperTokens`.
    """

    super_tokens: tuple[torch.Tensor, ...] | None = None
    associations: tuple[torch.Tensor, ...] | None = None


@dataclass
class SViTImageClassifierOutput(ImageClassifierOutput):
    """Hold what `SViTForImageClassification` returns: `loss`, `logits`, and what `SViTModelOutput` describes."""

    super_tokens: tuple[torch.Tensor, ...] | None = None
    associations: tuple[torch.Tensor, ...] | None = None


@dataclass
class SViTBackboneOutput(BackboneOutput):
    """Hold what `SViTBackbone` returns: `feature_maps`, and what `SViTModelOutput` describes."""

    super_tokens: tuple[torch.Tensor, ...] | None = None
    associations: tuple[torch.Tensor, ...] | None = None


class SViTPreTrainedModel(PreTrainedModel):
    """Handle weight initialisation, loading, saving and the features that all SViT models share."""

    config: SViTConfig
    config_class = SViTConfig
    base_model_prefix = "svit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["SViTPatchEmbeddings", "SViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SViTStage),
        "attentions": OutputRecorder(SViTSelfAttention, index=1),
        "super_tokens": OutputRecorder(SViTSuperTokenAttention, index=1),
        "associations": OutputRecorder(SViTSuperTokenAttention, index=2),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as the official code does: truncated normal linear layers, PyTorch's default convolutions."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, SViTLayerScale):
            init.constant_(module.scale, module.init_value)
        else:
            super()._init_weights(module)

    def set_super_token_implementation(self, implementation: str) -> None:
        """Choose what runs the super-token operations of this object; `config` and saved files do not know of it.

        Args:
            implementation: "auto" (what every model starts with) for kernels that were measured to be faster and can
                run on the tokens at hand, which is said once, and PyTorch's own operators otherwise; "eager" for these
                alone; or the name of kernels, such as "triton".

        Raises:
            ValueError: If `implementation` is unknown, or what it needs is missing; the message says what. What
                depends on the device or the dtype is found out by the next forward pass, and raised there.
        """
        set_super_token_implementation(self, implementation)

    @property
    def super_token_implementation(self) -> str:
        """What runs the super-token operations where this model is now, in its dtype: "eager", "triton", ..."""
        layers = [module for module in self.modules() if isinstance(module, SViTSuperTokenAttention)]
        return resolve_implementation(layers[0].implementation, self.device, self.dtype)

    def freeze_batch_norm(self, freeze: bool = True, freeze_affine: bool = False) -> None:
        """Keep every batch norm on its running statistics, also after `.train()`, or let it go again.

        What dense heads and fine-tuning with small batches want, and what the official fine-tuning at 384 pixels does.

        Args:
            freeze: Whether to freeze or to release.
            freeze_affine: Whether weight and bias of the norms stop training as well; releasing lets them train again.
        """
        for norm in self._batch_norms():
            norm.is_frozen = freeze
            norm.train(self.training and not freeze)
            for parameter in norm.parameters():
                parameter.requires_grad_(not (freeze and freeze_affine))

    def train(self, mode: bool = True) -> "SViTPreTrainedModel":
        """Set training or evaluation mode; batch norms frozen by `freeze_batch_norm` stay in evaluation mode."""
        super().train(mode)
        for norm in self._batch_norms():
            if getattr(norm, "is_frozen", False):
                norm.eval()
        return self

    def _batch_norms(self) -> Iterator[Any]:
        # the base class, so that SyncBatchNorm counts too
        return (module for module in self.modules() if isinstance(module, _BatchNorm))


class SViTModel(SViTPreTrainedModel):
    """Turn images into feature maps and a global descriptor.

    Args:
        config: The architecture.
        add_pooling_layer: Whether to compute `pooler_output`.

    Example:
        >>> import torch
        >>> from svit_hf import SViTConfig, SViTModel
        >>> model = SViTModel(SViTConfig()).eval()
        >>> outputs = model(torch.randn(1, 3, 64, 64))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([1, 512, 2, 2]), torch.Size([1, 1024]))
    """

    def __init__(self, config: SViTConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        # a config may have been changed since it was made
        config.validate()
        rates = _drop_path_rates(config)
        self.embeddings = SViTPatchEmbeddings(config)
        self.stages = nn.ModuleList(
            [SViTStage(config, stage, list(islice(rates, depth))) for stage, depth in enumerate(config.depths)]
        )
        self.pooler = SViTPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem."""
        return self.embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> SViTModelOutput:
        """Compute feature maps.

        Args:
            pixel_values: Images, shape `(B, num_channels, height, width)`, any size from 32 pixels up; cast to the
                dtype of the weights.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_super_tokens`, `output_associations`,
                `return_dict`.

        Returns:
            See `SViTModelOutput`.
        """
        hidden_states = self.embeddings(pixel_values)
        for stage in self.stages:
            hidden_states = stage(hidden_states, **kwargs)
        pooled = self.pooler(hidden_states) if self.pooler is not None else None
        return SViTModelOutput(last_hidden_state=hidden_states, pooler_output=pooled)


class SViTForImageClassification(SViTPreTrainedModel):
    """Classify images with a linear layer on top of the global descriptor.

    With `config.num_labels=0` the logits are the descriptor itself.

    Example:
        >>> import torch
        >>> from svit_hf import SViTConfig, SViTForImageClassification
        >>> model = SViTForImageClassification(SViTConfig(num_labels=10)).eval()
        >>> model(torch.randn(1, 3, 64, 64)).logits.shape
        torch.Size([1, 10])
    """

    # the loss is a mean over images: it does not take `num_items_in_batch`
    accepts_loss_kwargs = False

    def __init__(self, config: SViTConfig):
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        self.svit = SViTModel(config)
        self.classifier: nn.Module = nn.Identity()
        if self.num_labels > 0:
            self.classifier = nn.Linear(config.projection_dim, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SViTImageClassifierOutput:
        """Compute logits, and a loss if there are labels.

        Args:
            pixel_values: Images, shape `(B, num_channels, height, width)`, any size from 32 pixels up.
            labels: Shape `(B,)` of class indices, or `(B, num_labels)` for `problem_type` "multi_label_classification"
                and "regression"; the loss follows `config.problem_type`, or is chosen by number and dtype of labels.
            **kwargs: As in `SViTModel.forward`.

        Returns:
            See `SViTImageClassifierOutput`; logits have the shape `(B, num_labels)`.
        """
        outputs: SViTModelOutput = self.svit(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SViTImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            super_tokens=outputs.super_tokens,
            associations=outputs.associations,
        )

    def set_labels(self, labels: Sequence[str]) -> None:
        """Make the classifier predict `labels`, in this order.

        Labels that the model knows already, in another order, keep their weights: the rows of the classifier are
        permuted. For any other set of labels a new, untrained classifier replaces the old one, with a warning.

        Args:
            labels: Names of the classes, one per class index of the data.

        Raises:
            ValueError: If `labels` is empty or names a class twice.
        """
        labels = list(labels)
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"`labels` is {labels}; it has to name at least one class, and every class once.")
        known = list((self.config.id2label or {}).values())
        if labels == known:
            return
        if sorted(labels) == sorted(known):
            order = [known.index(label) for label in labels]
            with torch.no_grad():
                for parameter in self.classifier.parameters():
                    parameter.copy_(parameter[order])
            logger.info("The rows of the classifier were permuted to the new order of its labels.")
        else:
            logger.warning(
                f"A new, untrained classifier for {len(labels)} labels replaces the one for {len(known)}, since their "
                "names differ. If only the names of the old one were missing, set `config.id2label` first."
            )
            self.classifier = nn.Linear(self.config.projection_dim, len(labels), device=self.device, dtype=self.dtype)
            self._init_weights(self.classifier)
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in enumerate(labels)}
        self.num_labels = len(labels)


class SViTBackbone(BackboneMixin, SViTPreTrainedModel):
    """Give the feature maps of chosen stages to a dense head (UperNet, Mask2Former, DETR, ...).

    Example:
        >>> import torch
        >>> from svit_hf import SViTBackbone, SViTConfig
        >>> backbone = SViTBackbone(SViTConfig(out_features=["stage1", "stage4"])).eval()
        >>> [tuple(feature.shape) for feature in backbone(torch.randn(1, 3, 64, 64)).feature_maps]
        [(1, 64, 16, 16), (1, 512, 2, 2)]
    """

    # a classifier's checkpoint has a head that a backbone does not need
    _keys_to_ignore_on_load_unexpected = [r"pooler", r"classifier"]

    def __init__(self, config: SViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.svit = SViTModel(config, add_pooling_layer=False)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> SViTBackboneOutput:
        """Compute the feature maps of `config.out_features`.

        Args:
            pixel_values: Images, shape `(B, num_channels, height, width)`, any size from 32 pixels up.
            **kwargs: As in `SViTModel.forward`.

        Returns:
            See `SViTBackboneOutput`; the map of stage `i` has `hidden_sizes[i - 1]` channels, stride `2 ** (i + 1)`.
        """
        kwargs["output_hidden_states"] = True
        outputs: SViTModelOutput = self.svit(pixel_values, **kwargs)
        assert outputs.hidden_states is not None
        maps = dict(zip(self.stage_names, outputs.hidden_states, strict=True))
        return SViTBackboneOutput(
            feature_maps=tuple(maps[stage] for stage in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            super_tokens=outputs.super_tokens,
            associations=outputs.associations,
        )


def _drop_path_rates(config: SViTConfig) -> Iterator[float]:
    """Grow linearly over all layers from 0 to `drop_path_rate`."""
    num_layers = sum(config.depths)
    return (config.drop_path_rate * layer / max(num_layers - 1, 1) for layer in range(num_layers))


__all__ = [
    "SViTBackbone",
    "SViTBackboneOutput",
    "SViTForImageClassification",
    "SViTImageClassifierOutput",
    "SViTModel",
    "SViTModelOutput",
    "SViTPreTrainedModel",
]
