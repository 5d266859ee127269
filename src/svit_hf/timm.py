# SPDX-License-Identifier: Apache-2.0
"""SViT for timm: `import svit_hf.timm` registers `svit_small`, `svit_base` and `svit_large`.

The network is that of `svit_hf.model`, and its tensors have the same names: `timm.create_model("svit_small",
checkpoint_path="svit-small-224/model.safetensors")` loads what this package saves.

Example:
    >>> import timm, torch
    >>> import svit_hf.timm
    >>> model = timm.create_model("svit_small", features_only=True, out_indices=(1, 3)).eval()
    >>> [tuple(features.shape) for features in model(torch.randn(1, 3, 64, 64))]
    [(1, 128, 8, 8), (1, 512, 2, 2)]
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.modeling_svit import SViTModel


__all__ = ["TimmSViT"]

_CONFIG_FIELDS = {field.name for field in fields(SViTConfig) if not field.name.startswith("_")}


class TimmSViT(nn.Module):
    """SViT classifier with the interface that timm expects of its models.

    Args:
        layout: Makes the config of fields that differ from the layout.
        num_classes: Classes; 0 for a model that returns its descriptor, `(B, projection_dim)`.
        in_chans: Channels of the images.
        global_pool: Always `"avg"`: the mean is a part of SViT's pooler.
        img_size: Height and width of the images, in pixels; no limit.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last layer, from 0 at the first one.
        **config_fields: Fields of `SViTConfig`, such as `super_token_sizes`.

    Attributes:
        num_features: Channels of `forward_features`.
        head_hidden_size: Channels that the classifier takes.
        feature_info: Channels, reduction and name of each stage.
    """

    def __init__(
        self,
        layout: Callable[..., SViTConfig] = SViTConfig.small,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        img_size: int | Sequence[int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **config_fields: Any,
    ):
        super().__init__()
        _require_mean(global_pool)
        if unknown := sorted(config_fields.keys() - _CONFIG_FIELDS):
            raise TypeError(f"{unknown[0]!r} is no argument of timm's SViT, nor a field of SViTConfig.")
        size = img_size if isinstance(img_size, int) else list(img_size)
        config = layout(num_channels=in_chans, image_size=size, drop_path_rate=drop_path_rate, **config_fields)
        self.num_classes, self.drop_rate, self.global_pool = num_classes, drop_rate, global_pool
        self.num_features = config.hidden_sizes[-1]
        self.head_hidden_size = config.projection_dim
        self.feature_info = [
            {"num_chs": channels, "reduction": 4 * 2**stage, "module": f"svit.stages.{stage}"}
            for stage, channels in enumerate(config.hidden_sizes)
        ]
        self.svit = SViTModel(config)
        self.head_drop = nn.Dropout(drop_rate)
        self.classifier = self._make_classifier(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, num_classes)`, of images, `(B, in_chans, height, width)`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map of the last stage, `(B, num_features, H, W)`."""
        features: torch.Tensor = self.svit.embeddings(x)
        for stage in self.svit.stages:
            features = stage(features)
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return logits of a feature map, or what the classifier would take, `(B, head_hidden_size)`."""
        assert self.svit.pooler is not None, "the head was pruned"
        pooled: torch.Tensor = self.head_drop(self.svit.pooler(x))
        return pooled if pre_logits else self.classifier(pooled)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return feature maps of stages.

        Args:
            x: Images, `(B, in_chans, height, width)`.
            indices: Stages from 0, or how many of the last ones; all if `None`.
            norm: Without effect, SViT has no last norm.
            stop_early: Whether to leave out the stages after the last one that is asked for.
            output_fmt: Always `"NCHW"`.
            intermediates_only: Whether to return the list alone, without what the last stage computed.

        Raises:
            ValueError: If there are no such stages, or for another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"`output_fmt` is {output_fmt!r}; allowed is 'NCHW'.")
        taken, last = _stages_taken(len(self.svit.stages), indices)
        stages = list(self.svit.stages)[: last + 1] if stop_early else list(self.svit.stages)
        features = self.svit.embeddings(x)
        maps = []
        for number, stage in enumerate(stages):
            features = stage(features)
            if number in taken:
                maps.append(features)
        return maps if intermediates_only else (features, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one that is asked for, and the head; return which stages are taken."""
        taken, last = _stages_taken(len(self.svit.stages), indices)
        self.svit.stages = self.svit.stages[: last + 1]
        if prune_head:
            self.svit.pooler, self.classifier = None, nn.Identity()
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new, untrained classifier in the place of the old one; 0 classes for none."""
        _require_mean(global_pool or "avg")
        self.num_classes = num_classes
        parameter = next(self.svit.parameters())
        self.classifier = self._make_classifier(num_classes).to(parameter.device, parameter.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        network: Any = self.svit
        if enable:
            network.gradient_checkpointing_enable()
        else:
            network.gradient_checkpointing_disable()

    def no_weight_decay(self) -> set[str]:
        """Return names of tensors with more than one dimension that shall not decay: there are none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how tensors go together, for learning rates by layer."""
        layers = [
            (r"^svit\.stages\.(\d+)\.downsampling", (0,)),
            (r"^svit\.stages\.(\d+)\.layers\.(\d+)", None),
            (r"^svit\.pooler", (99999,)),
        ]
        return {"stem": r"^svit\.embeddings", "blocks": r"^svit\.stages\.(\d+)" if coarse else layers}

    def _make_classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.head_hidden_size, num_classes)
        self.svit._init_weights(classifier)
        return classifier


def _stages_taken(num_stages: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """Return stages from 0, and the last of them."""
    if indices is None:
        indices = num_stages
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or not all(-num_stages <= index < num_stages for index in wanted):
        raise ValueError(f"`indices` is {indices}; the model has {num_stages} stages, from 0.")
    taken = [index % num_stages for index in wanted]
    return taken, max(taken)


def _require_mean(global_pool: str) -> None:
    if global_pool != "avg":
        raise ValueError(
            f"`global_pool` is {global_pool!r}; SViT's pooler takes the mean, so that only 'avg' is there."
        )


default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "svit.embeddings.layers.0.convolution",
            "classifier": "classifier",
        }
        for name in ("svit_small", "svit_base", "svit_large")
    }
)


def _create(name: str, layout: Callable[..., SViTConfig], pretrained: bool, **kwargs: Any) -> nn.Module:
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    model: nn.Module = build_model_with_cfg(
        TimmSViT, name, pretrained, feature_cfg=feature_cfg, layout=layout, **kwargs
    )
    return model


@register_model
def svit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SViT-S, 25.5 M parameters."""
    return _create("svit_small", SViTConfig.small, pretrained, **kwargs)


@register_model
def svit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SViT-B, 51.7 M parameters."""
    return _create("svit_base", SViTConfig.base, pretrained, **kwargs)


@register_model
def svit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SViT-L, 95.0 M parameters."""
    return _create("svit_large", SViTConfig.large, pretrained, **kwargs)
