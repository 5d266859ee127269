# SPDX-License-Identifier: Apache-2.0
"""What may take the place of a part of SViT, so that the part's worth can be measured; none is the published model.

`swap_parts` is called once, when a model is made, and does nothing for the fields of the published model. Shape
letters are those of `super_tokens_svit.py`.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cells_svit import join_cells, split_into_cells
from .configuration_svit import SViTConfig


class SViTSuperTokenConvolution(nn.Module):
    """Convolutions among super tokens where attention was: 1x1, depthwise 5x5, 1x1.

    Source: what `StokenAttention` of hhb072/STViT@c9ed9a4 has without `refine_attention`.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.expansion = nn.Conv2d(channels, channels, kernel_size=1)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=5, padding=2, groups=channels)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self.projection(self.depthwise(self.expansion(hidden_states))), None


class SViTUnmixedSuperTokens(nn.Module):
    """Nothing among super tokens: they are spread back as they were sampled."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


class SViTNoAttention(nn.Module):
    """Nothing where attention was: tokens mix in the feed-forward and the position embedding alone."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        return hidden_states.new_zeros(hidden_states.shape[0], 1, 1, 1), None, None


class SViTWindowAttention(nn.Module):
    """Attention within each cell, with the norm and the weights of super token attention.

    Zeros that fill the last cells are attended to. Source: windows that are not shifted, of Swin (Liu et al., arXiv
    2103.14030), section 3.2.
    """

    def __init__(self, attention: Any):
        super().__init__()
        self.cell_size = attention.cell_size
        self.norm = attention.norm
        self.self_attention = attention.self_attention

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        size, batch_size = hidden_states.shape[-2:], hidden_states.shape[0]
        hidden_states = self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        cells = split_into_cells(hidden_states, self.cell_size)  # (B, G, P, C)
        windows = cells.flatten(0, 1).unflatten(1, self.cell_size).permute(0, 3, 1, 2)  # (B * G, C, h, w)
        attended = self.self_attention(windows, **kwargs)[0].permute(0, 2, 3, 1).flatten(1, 2)  # (B * G, P, C)
        return join_cells(attended.unflatten(0, (batch_size, -1)), self.cell_size, size), None, None


class SViTPooledKeyAttention(nn.Module):
    """Attention from all tokens to the means of cells.

    Source: linear spatial reduction attention of PVTv2 (Wang et al., arXiv 2106.13797), section 3.2, with cells of a
    fixed size.
    """

    def __init__(self, attention: Any, qkv_bias: bool):
        super().__init__()
        channels = attention.self_attention.projection.out_channels
        self.cell_size = attention.cell_size
        self.num_heads = attention.self_attention.num_heads
        self.attention_dropout = attention.self_attention.attention_dropout
        self.norm = attention.norm
        self.query = nn.Conv2d(channels, channels, kernel_size=1, bias=qkv_bias)
        self.key_value = nn.Conv2d(channels, 2 * channels, kernel_size=1, bias=qkv_bias)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        size = hidden_states.shape[-2:]
        hidden_states = self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # what reaches beyond the grid does not count in the means
        means = F.avg_pool2d(hidden_states, self.cell_size, ceil_mode=True)  # (B, C, Gh, Gw)
        query, key, value = (
            states.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (B, A, N or G, D)
            for states in (self.query(hidden_states), *self.key_value(means).chunk(2, dim=1))
        )
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.projection(attended.transpose(2, 3).flatten(1, 2).unflatten(2, size)), None, None


class SViTPatchStem(nn.Module):
    """A convolution that turns each 4x4 pixels into a token, and batch norm, in place of the four convolutions."""

    def __init__(self, config: SViTConfig):
        super().__init__()
        self.convolution = nn.Conv2d(config.num_channels, config.hidden_sizes[0], kernel_size=4, stride=4)
        self.batch_norm = nn.BatchNorm2d(
            config.hidden_sizes[0], eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        # as many tokens as the convolutions of the published stem give
        return self.batch_norm(self.convolution(F.pad(hidden_states, (0, -width % 4, 0, -height % 4))))


def swap_parts(model: Any, config: SViTConfig) -> None:
    """Put what the config asks for in the place of parts of a model that was just made.

    Args:
        model: `SViTModel`.
        config: Its config.
    """
    if config.stem_kind == "patches":
        model.embeddings.layers = nn.ModuleList([SViTPatchStem(config)])
    if not config.use_projection and model.pooler is not None:
        model.pooler.projection = nn.Identity()
    for stage, kind in zip(model.stages, config.stage_attention_kinds, strict=True):
        for layer in stage.layers:
            if not config.use_position_embedding:
                layer.position_embedding = nn.Identity()
            if config.feed_forward_kind == "plain":
                layer.mlp.depthwise = nn.Identity()
            _swap_attention(layer, kind, config)


def _swap_attention(layer: Any, kind: str, config: SViTConfig) -> None:
    attention = layer.attention
    if kind == "none":
        layer.attention = SViTNoAttention()
    elif kind == "window":
        layer.attention = SViTWindowAttention(attention)
    elif kind == "pooled_keys":
        layer.attention = SViTPooledKeyAttention(attention, config.qkv_bias)
    elif attention.cell_size != (1, 1) and config.super_token_mixer == "convolution":
        attention.self_attention = SViTSuperTokenConvolution(attention.self_attention.projection.out_channels)
    elif attention.cell_size != (1, 1) and config.super_token_mixer == "none":
        attention.self_attention = SViTUnmixedSuperTokens()


__all__ = ["swap_parts"]
