# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers of SViT, from the stem to the pooler, and super token attention as a module of its own.

The super-token arithmetic is in `super_tokens_svit.py`, whole models are in `modeling_svit.py`. Method: "Vision
Transformer with Super Token Sampling" (Huang et al., CVPR 2023, arXiv 2211.11167). Behaviour checked against
hhb072/STViT@c9ed9a4, whose layers are re-implemented, not copied. Feature maps are `(B, C, H, W)` in channels_last
memory, so that every operation on tokens sees contiguous channels without a copy.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_svit import SViTConfig
from .implementation_svit import check_implementation, find_kernels, is_bare
from .super_tokens_svit import super_token_attention


# what a batch norm counts batches in while its own counter shall stay; made here, since selective checkpointing allows
# no operation in the backward pass that was not in the forward pass
_COUNTER_OF_NOTHING = torch.zeros((), dtype=torch.long)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with explicit weights, the implementation that can return them.

    Query, key and value have the shape `(B, A, N, D)`; returned are the attended values, `(B, N, A, D)`, and the
    weights, `(B, A, N, N)`.
    """
    weights = query @ key.mT * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class SViTDropPath(nn.Module):
    """Drop a residual branch for whole images at random while training (stochastic depth)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        keep = 1.0 - self.rate
        mask = torch.rand(hidden_states.shape[0], 1, 1, 1, device=hidden_states.device) < keep
        return hidden_states * (mask / keep).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class SViTLayerScale(nn.Module):
    """Scale each channel by a learned factor."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.scale = nn.Parameter(torch.full((channels,), float(init_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.scale.view(-1, 1, 1)


class SViTDepthwiseResidual(nn.Module):
    """Add a depthwise 3x3 convolution to its input: the position embedding, and the core of the feed-forward."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        # False where the weights have taken the shortcut in, see `svit_hf.inference.fold_for_inference`
        self.has_shortcut = True
        # a property of the object, not of the architecture; see `set_super_token_implementation`
        self.implementation = "auto"

    def forward(self, hidden_states: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Return `a + convolution(a)`, where `a` is the input itself or, if `activation` is "gelu", its GELU."""
        kernels = self.kernels_for(hidden_states)
        if kernels is not None:
            hidden_states = hidden_states.to(self._output_dtype(hidden_states))
            weight, bias = self.convolution.weight, self.convolution.bias
            return kernels.depthwise_residual(hidden_states, weight, bias, activation, self.has_shortcut)
        if activation == "gelu":
            hidden_states = F.gelu(hidden_states)
        convolved = self.convolution(hidden_states)
        return hidden_states + convolved if self.has_shortcut else convolved

    def kernels_for(self, hidden_states: torch.Tensor) -> Any | None:
        """Return the operators that take the place of `convolution`, or None where that has to run itself."""
        kernels = find_kernels(self.implementation, hidden_states)
        if kernels is None or type(self.convolution) is not nn.Conv2d or not is_bare(self.convolution):
            return None
        return kernels

    def _output_dtype(self, hidden_states: torch.Tensor) -> torch.dtype:
        """Return what the sum has without kernels, where autocast gives the convolution a dtype of its own."""
        device_type = hidden_states.device.type
        if not torch.is_autocast_enabled(device_type):
            return hidden_states.dtype
        dtype = torch.get_autocast_dtype(device_type)
        return torch.promote_types(hidden_states.dtype, dtype) if self.has_shortcut else dtype

    def extra_repr(self) -> str:
        return "" if self.has_shortcut else "has_shortcut=False"


class SViTConvPositionEmbedding(SViTDepthwiseResidual):
    """Give each token its position through its neighbourhood (CPE, section 3.1)."""


class SViTSelfAttention(nn.Module):
    """Multi-head self-attention over all positions of a grid (section 3.3)."""

    def __init__(self, config: SViTConfig, channels: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        # 1x1 convolutions rather than linear layers: see docs/decisions/0002-pointwise-convolutions.md
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=config.qkv_bias)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_size, channels, height, width = hidden_states.shape
        # the rows of qkv are head-major: D of query, D of key, D of value for each head
        packed = self.qkv(hidden_states).permute(0, 2, 3, 1)  # (B, H, W, A * 3 * D)
        packed = packed.reshape(batch_size, height * width, self.num_heads, 3, self.head_dim)  # (B, N, A, 3, D)
        query, key, value = packed.permute(3, 0, 2, 1, 4).unbind(0)  # (B, A, N, D) each
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attended = attended.reshape(batch_size, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.projection(attended), weights


class SViTSuperTokenAttention(nn.Module):
    """Super token attention (STA, section 3.2): sample super tokens, attend among them, upsample.

    With a cell of 1 it is plain self-attention among all tokens, with the same weights. A norm that `get_norm`
    returns is applied to the tokens first, as `(B, H, W, C)`.
    """

    def __init__(
        self, config: SViTConfig, channels: int, num_heads: int, cell_size: tuple[int, int], num_iterations: int
    ):
        super().__init__()
        self.cell_size = cell_size
        self.num_iterations = num_iterations
        self.sampler = config.super_token_sampler
        # a property of the object, not of the architecture; see `set_super_token_implementation`
        self.implementation = "auto"
        self.self_attention = SViTSelfAttention(config, channels, num_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        get_norm: Callable[[], nn.Module] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        norm = None if get_norm is None else get_norm()
        if self.cell_size == (1, 1):
            if norm is not None:
                hidden_states = norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.self_attention(hidden_states, **kwargs)[0], None, None
        hidden_states, sampled = super_token_attention(
            hidden_states,
            lambda super_tokens: self.self_attention(super_tokens, **kwargs)[0],
            self.cell_size,
            self.num_iterations,
            self.sampler,
            self.implementation,
            norm,
        )
        return hidden_states, sampled.super_tokens, sampled.association

    def extra_repr(self) -> str:
        return f"cell_size={self.cell_size}, num_iterations={self.num_iterations}, sampler={self.sampler!r}"


class SuperTokenAttention(SViTSuperTokenAttention):
    """Use super token attention as a module of its own, in any network: `(B, C, H, W)` to `(B, C, H, W)`.

    Any height and width, any float dtype, any device; both memory layouts give the same result. Includes neither
    norm nor residual.

    Args:
        dim: Channels.
        num_heads: Attention heads; divides `dim`.
        cell_size: Cell of a super token in tokens, one int or a `(height, width)` pair; 1 means plain self-attention.
        num_iterations: Rounds of association and averaging, at least 1.
        qkv_bias: Whether queries, keys and values have a bias.
        attention_dropout: Dropout of the attention weights while training.
        sampler: How super tokens are sampled, a name in `SUPER_TOKEN_SAMPLERS`.
        attn_implementation: An attention function of Transformers, `"sdpa"`, `"eager"`, `"flash_attention_2"`, ...

    Raises:
        ValueError: If an argument cannot be used; the message names it.

    Source: section 3.2; `StokenAttention` in hhb072/STViT@c9ed9a4.

    Example:
        >>> import torch
        >>> from svit_hf import SuperTokenAttention
        >>> attention = SuperTokenAttention(64, num_heads=2, cell_size=8)
        >>> attention(torch.randn(1, 64, 50, 75)).shape
        torch.Size([1, 64, 50, 75])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        cell_size: int | tuple[int, int] = 8,
        num_iterations: int = 1,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        sampler: str = "soft",
        attn_implementation: str = "sdpa",
    ):
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"`num_heads` is {num_heads}; it has to be a divisor of `dim`={dim}.")
        config = SViTConfig(
            # only what the attention reads; the stem's even width does not concern a stand-alone module
            hidden_sizes=[2],
            depths=[1],
            num_attention_heads=[1],
            super_token_sizes=[cell_size],
            num_sampling_iterations=[num_iterations],
            use_layer_scale=[False],
            qkv_bias=qkv_bias,
            attention_probs_dropout_prob=attention_dropout,
            super_token_sampler=sampler,
        )
        config._attn_implementation = attn_implementation
        super().__init__(config, dim, num_heads, config.cell_sizes[0], num_iterations)

    def set_super_token_implementation(self, implementation: str) -> None:
        """Choose "auto", "eager" or kernels such as "triton", as `SViTPreTrainedModel` does."""
        set_super_token_implementation(self, implementation)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the attended tokens for `hidden_states`, both of shape `(B, C, H, W)`."""
        return super().forward(hidden_states)[0]


class SViTConvFFN(nn.Module):
    """Convolutional feed-forward: widen, activate, add a depthwise convolution, narrow (section 3.1)."""

    def __init__(self, config: SViTConfig, channels: int):
        super().__init__()
        hidden_channels = int(channels * config.mlp_ratio)
        self.fc1 = nn.Conv2d(channels, hidden_channels, kernel_size=1)
        self.activation = ACT2FN[config.hidden_act]
        self.depthwise = SViTDepthwiseResidual(hidden_channels)
        self.fc2 = nn.Conv2d(hidden_channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        has_kernels = self.depthwise.kernels_for(hidden_states) is not None
        if has_kernels and type(self.activation) is GELUActivation and is_bare(self.activation):
            # one pass over the widest map of the block; backward needs what went in and not its GELU
            return self.fc2(self.depthwise(hidden_states, activation="gelu"))
        return self.fc2(self.depthwise(self.activation(hidden_states)))


class SViTLayer(GradientCheckpointingLayer):
    """One super token transformer block: position embedding, super token attention, convolutional feed-forward."""

    def __init__(self, config: SViTConfig, stage: int, drop_path_rate: float):
        super().__init__()
        channels = config.hidden_sizes[stage]
        self.position_embedding = SViTConvPositionEmbedding(channels)
        self.attention_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = SViTSuperTokenAttention(
            config,
            channels,
            config.num_attention_heads[stage],
            config.cell_sizes[stage],
            config.num_sampling_iterations[stage],
        )
        self.mlp_norm = _batch_norm(config, channels)
        self.mlp = SViTConvFFN(config, channels)
        self.layer_scale1: nn.Module = nn.Identity()
        self.layer_scale2: nn.Module = nn.Identity()
        if config.use_layer_scale[stage]:
            self.layer_scale1 = SViTLayerScale(channels, config.layer_scale_init_value)
            self.layer_scale2 = SViTLayerScale(channels, config.layer_scale_init_value)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = SViTDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.position_embedding(hidden_states)
        # handed over rather than called, so that kernels can normalize while they sample; and by a function, because
        # accelerate moves every module among the arguments of another to its device
        attended = self.attention(hidden_states, get_norm=lambda: self.attention_norm, **kwargs)[0]
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(self.dropout(attended)))
        mixed = self.mlp(self._normalize_for_mlp(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(self.dropout(mixed)))

    def _normalize_for_mlp(self, hidden_states: torch.Tensor) -> torch.Tensor:
        norm = self.mlp_norm
        if torch.compiler.is_compiling() or not _is_inside_backward():
            return norm(hidden_states)
        # gradient checkpointing runs the layer again in the backward pass: this batch is in the statistics already
        kept = norm.momentum, norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, _COUNTER_OF_NOTHING
        try:
            return norm(hidden_states)
        finally:
            norm.momentum, norm.num_batches_tracked = kept


class SViTConvLayer(nn.Module):
    """3x3 convolution, activation, batch norm: the order of the official stem."""

    def __init__(self, config: SViTConfig, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.activation = ACT2FN[config.hidden_act]
        self.batch_norm = _batch_norm(config, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.batch_norm(self.activation(self.convolution(hidden_states)))


class SViTPatchEmbeddings(nn.Module):
    """The stem: four convolutions that turn an image into tokens of 4x4 pixels."""

    def __init__(self, config: SViTConfig):
        super().__init__()
        channels = config.hidden_sizes[0]
        self.num_channels = config.num_channels
        self.layers = nn.ModuleList(
            [
                SViTConvLayer(config, config.num_channels, channels // 2, stride=2),
                SViTConvLayer(config, channels // 2, channels // 2, stride=1),
                SViTConvLayer(config, channels // 2, channels, stride=2),
                SViTConvLayer(config, channels, channels, stride=1),
            ]
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected is (batch, channels, height, width) "
                f"with `config.num_channels`={self.num_channels} channels."
            )
        hidden_states = pixel_values.to(dtype=next(self.parameters()).dtype)
        for layer in self.layers:
            # grey images have both layouts at once, so asking before the first layer alone would not do
            hidden_states = layer(hidden_states.contiguous(memory_format=torch.channels_last))
        return hidden_states


class SViTDownsampling(nn.Module):
    """Halve the resolution and change the width between two stages."""

    def __init__(self, config: SViTConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.batch_norm = _batch_norm(config, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.batch_norm(self.convolution(hidden_states))


class SViTStage(nn.Module):
    """Layers of one resolution, after the downsampling that leads to it (none for the first stage)."""

    def __init__(self, config: SViTConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.downsampling: nn.Module = nn.Identity()
        if stage > 0:
            self.downsampling = SViTDownsampling(config, config.hidden_sizes[stage - 1], config.hidden_sizes[stage])
        self.layers = nn.ModuleList([SViTLayer(config, stage, rate) for rate in drop_path_rates])

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.downsampling(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class SViTPooler(nn.Module):
    """Project, normalise, activate and average a feature map: `(B, C, H, W)` to `(B, projection_dim)`."""

    def __init__(self, config: SViTConfig):
        super().__init__()
        self.projection = nn.Conv2d(config.hidden_sizes[-1], config.projection_dim, kernel_size=1)
        self.batch_norm = _batch_norm(config, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.silu(self.batch_norm(self.projection(hidden_states))).mean(dim=(2, 3))


def set_super_token_implementation(module: nn.Module, implementation: str) -> None:
    """Choose what runs the super-token operations and depthwise convolutions of every layer in `module`.

    Raises:
        ValueError: If the implementation is unknown, or cannot run anywhere in this process; the message says why.
    """
    check_implementation(implementation)
    for layer in module.modules():
        if isinstance(layer, SViTSuperTokenAttention | SViTDepthwiseResidual):
            layer.implementation = implementation


def _batch_norm(config: SViTConfig, channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


def _is_inside_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
