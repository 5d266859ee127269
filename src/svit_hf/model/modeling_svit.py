# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""SViT as Transformers models, from the layers up: base model, image classifier, backbone.

Also super token attention as a module of its own. The super-token arithmetic is in `super_tokens_svit.py`. Method:
"Vision Transformer with Super Token Sampling" (Huang et al., CVPR 2023, arXiv 2211.11167). Outputs and gradients equal
those of hhb072/STViT@c9ed9a4 with converted weights; its layers are re-implemented, not copied. Feature maps are
`(B, C, H, W)` in channels_last memory, so that every operation on tokens sees contiguous channels without a copy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .ablations_svit import swap_parts

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig
from .own_code_svit import write_code  # noqa: F401
from .samplers_svit import CosineSampler  # noqa: F401
from .super_tokens_svit import SUPER_TOKEN_SAMPLERS, make_learned_sampler, super_token_attention


logger = logging.get_logger(__name__)

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
    weights = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class SViTDropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole images, or clips, at random while training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden_states
        keep = 1.0 - self.rate
        mask = torch.rand(hidden_states.shape[0] // num_frames, 1, 1, 1, device=hidden_states.device) < keep
        if num_frames > 1:
            mask = mask.repeat_interleave(num_frames, dim=0)
        return hidden_states * (mask / keep).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class SViTLayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, channels: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.scale = nn.Parameter(torch.full((channels,), float(init_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.scale.view(-1, 1, 1)


class SViTDepthwiseResidual(nn.Module):
    """A depthwise 3x3 convolution added to its input: the position embedding, and the core of the feed-forward."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        # False where the weights have taken the shortcut in, see `svit_hf.inference.fold_for_inference`
        self.has_shortcut = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        convolved = self.convolution(hidden_states)
        return hidden_states + convolved if self.has_shortcut else convolved

    def extra_repr(self) -> str:
        return "" if self.has_shortcut else "has_shortcut=False"


class SViTConvPositionEmbedding(SViTDepthwiseResidual):
    """The position of each token through its neighbourhood (CPE, section 3.1)."""


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
        attended, weights = self.attend(*self.project(hidden_states), **kwargs)
        attended = attended.reshape(batch_size, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.projection(attended), weights

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute queries, keys and values of all positions, `(B, A, N, D)` each."""
        # the rows of qkv are head-major: D of query, D of key, D of value for each head
        packed = self.qkv(hidden_states).permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, A * 3 * D)
        packed = packed.unflatten(2, (self.num_heads, 3, self.head_dim))  # (B, N, A, 3, D)
        query, key, value = packed.permute(3, 0, 2, 1, 4).unbind(0)
        return query, key, value

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended values, `(B, N, A, D)`, and the weights where the implementation has them."""
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            # the functions of Transformers cannot reshape a batch without images
            self.config._attn_implementation if query.shape[0] else "eager",
            eager_attention_forward,
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
        return attended, weights


class SViTSuperTokenAttention(nn.Module):
    """Super token attention (STA, section 3.2): normalise, sample super tokens, attend among them, upsample.

    With a cell of 1 it is plain self-attention among all tokens, with the same weights.
    """

    def __init__(
        self, config: SViTConfig, channels: int, num_heads: int, cell_size: tuple[int, int], num_iterations: int
    ):
        super().__init__()
        self.cell_size = cell_size
        self.num_iterations = num_iterations
        self.sampler = config.super_token_sampler
        self.learned_sampler = make_learned_sampler(self.sampler, channels, cell_size)
        self.norm: nn.Module = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.self_attention = SViTSelfAttention(config, channels, num_heads)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        hidden_states = self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.cell_size == (1, 1):
            return self.self_attention(hidden_states, **kwargs)[0], None, None
        hidden_states, sampled = super_token_attention(
            hidden_states,
            lambda super_tokens: self.self_attention(super_tokens, **kwargs)[0],
            self.cell_size,
            self.num_iterations,
            self.learned_sampler or self.sampler,
        )
        return hidden_states, sampled.super_tokens, sampled.association

    def extra_repr(self) -> str:
        return f"cell_size={self.cell_size}, num_iterations={self.num_iterations}, sampler={self.sampler!r}"


class SuperTokenAttention(SViTSuperTokenAttention):
    """Super token attention as a module of its own, for any network: `(B, C, H, W)` to `(B, C, H, W)`.

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
        self.norm = nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the attended tokens for `hidden_states`, both of shape `(B, C, H, W)`."""
        return super().forward(hidden_states)[0]


class SViTConvFFN(nn.Module):
    """Convolutional feed-forward (section 3.1): widen, activate, add a depthwise convolution, narrow."""

    def __init__(self, config: SViTConfig, channels: int):
        super().__init__()
        hidden_channels = int(channels * config.mlp_ratio)
        self.fc1 = nn.Conv2d(channels, hidden_channels, kernel_size=1)
        self.activation = ACT2FN[config.hidden_act]
        self.depthwise = SViTDepthwiseResidual(hidden_channels)
        self.fc2 = nn.Conv2d(hidden_channels, channels, kernel_size=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(self.fc1(hidden_states))
        return self.fc2(self.depthwise(hidden_states))


class SViTLayer(GradientCheckpointingLayer):
    """One super token transformer block: position embedding, super token attention, convolutional feed-forward."""

    def __init__(self, config: SViTConfig, stage: int, drop_path_rate: float):
        super().__init__()
        channels = config.hidden_sizes[stage]
        self.position_embedding = SViTConvPositionEmbedding(channels)
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

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.gradient_checkpointing and self.training and not torch.compiler.is_compiling():
            kwargs["batch_statistics"] = _BatchStatistics()
        outputs: torch.Tensor = super().__call__(*args, **kwargs)
        return outputs

    def forward(
        self,
        hidden_states: torch.Tensor,
        batch_statistics: "_BatchStatistics | None" = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.position_embedding(hidden_states)
        attended = self.attention(hidden_states, **kwargs)[0]
        num_frames: Any = kwargs.get("num_frames", 1)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(self.dropout(attended)), num_frames)
        with nullcontext() if batch_statistics is None else batch_statistics.counted_once(self.mlp_norm):
            normalized = self.mlp_norm(hidden_states)
        return self.add_mixed(hidden_states, normalized, num_frames)

    def add_mixed(self, hidden_states: torch.Tensor, normalized: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
        """Add what the feed-forward makes of the normalised tokens; its shortcut included, this can be one kernel."""
        mixed = self.mlp(normalized)
        return hidden_states + self.drop_path(self.layer_scale2(self.dropout(mixed)), num_frames)


class _BatchStatistics:
    """Whether a call of a layer has counted its batch: gradient checkpointing runs the same call a second time."""

    def __init__(self) -> None:
        self.are_counted = False

    @contextmanager
    def counted_once(self, norm: Any) -> Iterator[None]:
        kept = norm.momentum, norm.num_batches_tracked
        if self.are_counted:
            norm.momentum, norm.num_batches_tracked = 0.0, _COUNTER_OF_NOTHING
        try:
            yield
        finally:
            self.are_counted = True
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
        first: Any = self.layers[0]
        hidden_states = pixel_values.to(dtype=first.convolution.weight.dtype)
        for layer in self.layers:
            # channels_last in words that function transforms know; grey images have both layouts at once, so that
            # asking before the first layer alone would not do
            hidden_states = layer(hidden_states.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        return hidden_states


class SViTDownsampling(nn.Module):
    """The step between two stages: half the resolution, another width."""

    def __init__(self, config: SViTConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.batch_norm = _batch_norm(config, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.batch_norm(self.convolution(hidden_states))


class SViTStage(nn.Module):
    """Layers of one resolution, after the downsampling that leads to it (none for the first stage)."""

    layer_class: type[SViTLayer] = SViTLayer

    def __init__(self, config: SViTConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.downsampling: nn.Module = nn.Identity()
        if stage > 0:
            self.downsampling = SViTDownsampling(config, config.hidden_sizes[stage - 1], config.hidden_sizes[stage])
        self.layers = nn.ModuleList([self.layer_class(config, stage, rate) for rate in drop_path_rates])

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.downsampling(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states


class SViTPooler(nn.Module):
    """Projection, norm, activation and mean of a feature map: `(B, C, H, W)` to `(B, projection_dim)`."""

    def __init__(self, config: SViTConfig):
        super().__init__()
        self.projection = nn.Conv2d(config.hidden_sizes[-1], config.projection_dim, kernel_size=1)
        self.batch_norm = _batch_norm(config, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.silu(self.batch_norm(self.projection(hidden_states))).mean(dim=(2, 3))


def _batch_norm(config: SViTConfig, channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


@dataclass
class SViTModelOutput(BaseModelOutputWithPooling):
    """Outputs of `SViTModel`.

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
    """Outputs of `SViTForImageClassification`: `loss`, `logits`, and those of `SViTModelOutput`."""

    super_tokens: tuple[torch.Tensor, ...] | None = None
    associations: tuple[torch.Tensor, ...] | None = None


@dataclass
class SViTBackboneOutput(BackboneOutput):
    """Outputs of `SViTBackbone`: `feature_maps`, and those of `SViTModelOutput`."""

    super_tokens: tuple[torch.Tensor, ...] | None = None
    associations: tuple[torch.Tensor, ...] | None = None


class SViTPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading, saving, and the features that all SViT models share."""

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
        elif type(module) in SUPER_TOKEN_SAMPLERS.values():
            getattr(module, "reset_parameters", lambda: None)()
        else:
            super()._init_weights(module)

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
    """SViT without a head: images to feature maps and a global descriptor.

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

    stage_class: type[SViTStage] = SViTStage

    def __init__(self, config: SViTConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        # a config may have been changed since it was made
        config.validate_architecture()
        rates = _drop_path_rates(config)
        self.embeddings = SViTPatchEmbeddings(config)
        self.stages = nn.ModuleList(
            [self.stage_class(config, stage, list(islice(rates, depth))) for stage, depth in enumerate(config.depths)]
        )
        self.pooler = SViTPooler(config) if add_pooling_layer else None
        swap_parts(self, config)
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
    """SViT with a linear classifier on top of the global descriptor.

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
    base_model_class: type[SViTModel] = SViTModel

    def __init__(self, config: SViTConfig):
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        self.svit = self.base_model_class(config)
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
        outputs: SViTModelOutput = self.svit(pixel_values, return_dict=True, **kwargs)
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
    """SViT as a backbone: the feature maps of chosen stages for a dense head (UperNet, Mask2Former, DETR, ...).

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
        channels = dict(zip(config.stage_names, self.num_features, strict=True))
        normalized = config.out_features if config.normalize_features else []
        self.feature_norms = nn.ModuleDict(
            {stage: nn.LayerNorm(channels[stage], eps=config.layer_norm_eps) for stage in normalized}
        )
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
        outputs: SViTModelOutput = self.svit(pixel_values, return_dict=True, **kwargs)
        assert outputs.hidden_states is not None
        maps = dict(zip(self.stage_names, outputs.hidden_states, strict=True))
        for stage, norm in self.feature_norms.items():
            maps[stage] = norm(maps[stage].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
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
