# SPDX-License-Identifier: Apache-2.0
"""SViT for clips: the layers of the image model frame by frame, attention over time, and the order of frames.

Every module of the image model keeps its name and its shape, so that the weights of an image model load as they are.
What is new starts at zero: such a model answers to a clip that stands still what the image model answers to its frame,
and does so however long the clip is, also after training.
"""

from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .ablations_svit import swap_parts  # noqa: F401
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig  # noqa: F401
from .configuration_video_svit import SViTVideoConfig
from .modeling_svit import (
    SViTForImageClassification,
    SViTLayer,
    SViTModel,
    SViTModelOutput,
    SViTPreTrainedModel,
    SViTSelfAttention,
    SViTStage,
    SViTSuperTokenAttention,
)
from .own_code_svit import write_code  # noqa: F401
from .samplers_svit import SUPER_TOKEN_SAMPLERS  # noqa: F401
from .super_tokens_svit import sample_super_tokens  # noqa: F401
from .video_super_tokens_svit import video_super_token_attention


# what each module keeps of the frames that a causal model has seen
Past: TypeAlias = dict[nn.Module, Any]


class SViTTemporalPositionEmbedding(nn.Module):
    """The order of frames: a learned share of how tokens changed since the frame before, and will until the next one.

    Changes rather than the frames themselves, so that a clip that stands still is left as it is. Before the first
    frame and after the last nothing changes. A causal model learns the share of the change before alone.
    """

    def __init__(self, channels: int, is_causal: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1 if is_causal else 2, channels))

    def forward(self, hidden_states: torch.Tensor, num_frames: int, past: Past | None = None) -> torch.Tensor:
        tokens = hidden_states.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))  # (B, T, H, W, C)
        changes = tokens[:, 1:] - tokens[:, :-1]
        since_before = F.pad(changes * self.weight[0], (0, 0, 0, 0, 0, 0, 1, 0))
        if past is not None:
            if self in past:
                since_before[:, 0] = (tokens[:, 0] - past[self]) * self.weight[0]
            past[self] = tokens[:, -1]
        ordered = tokens + since_before
        if len(self.weight) > 1:
            ordered = ordered + F.pad(changes * self.weight[1], (0, 0, 0, 0, 0, 0, 0, 1))  # until the next
        return ordered.flatten(0, 1).permute(0, 3, 1, 2)


class SViTCausalSelfAttention(SViTSelfAttention):
    """Self-attention of each frame to itself and to the frames before it, in this call or in earlier ones."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int = 1,
        past: Past | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        grid = hidden_states.permute(0, 2, 3, 1)
        query, *key_and_value = (
            each.unflatten(0, (-1, num_frames)).transpose(1, 2) for each in self.project(hidden_states)
        )  # (B, A, T, N, D) each
        if past is not None:
            if self in past:
                key_and_value = [torch.cat(pair, dim=2) for pair in zip(past[self], key_and_value, strict=True)]
            past[self] = key_and_value
        num_seen = key_and_value[0].shape[2] - num_frames
        # frame after frame: attention functions know no mask of blocks, and half of the products are not needed
        frames = [
            self.attend(
                query[:, :, frame],
                *(each[:, :, : num_seen + frame + 1].flatten(2, 3) for each in key_and_value),
                **kwargs,
            )
            for frame in range(num_frames)
        ]
        attended = torch.stack([each for each, _ in frames], dim=1).view_as(grid).permute(0, 3, 1, 2)
        rows = [weights for _, weights in frames if weights is not None]  # (B, A, N, frames up to this one * N) each
        weights = torch.cat([F.pad(row, (0, rows[-1].shape[-1] - row.shape[-1])) for row in rows], 2) if rows else None
        return self.projection(attended), weights


class SViTVideoAttention(SViTSuperTokenAttention):
    """Super token attention over the frames of a clip, with the weights of super token attention."""

    def __init__(self, config: SViTVideoConfig, channels: int, num_heads: int, *args: Any, frames_in_cell: int):
        super().__init__(config, channels, num_heads, *args)
        self.frames_in_cell = frames_in_cell
        self.is_causal = config.is_causal_in_time
        if self.is_causal and frames_in_cell:
            self.self_attention = SViTCausalSelfAttention(config, channels, num_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_frames: int = 1,
        past: Past | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not self.frames_in_cell:
            return super().forward(hidden_states, **kwargs)
        if self.is_causal:
            in_time: Any = {"num_frames": num_frames, "past": past}
            return super().forward(hidden_states, **in_time, **kwargs)
        hidden_states = self.norm(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.cell_size == (1, 1):
            height = hidden_states.shape[2]
            # the frames of a clip one below the other
            clips = hidden_states.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames)).flatten(1, 2)
            attended = self.self_attention(clips.permute(0, 3, 1, 2), **kwargs)[0]  # (B, C, T*H, W)
            frames = attended.permute(0, 2, 3, 1).unflatten(1, (num_frames, height)).flatten(0, 1)
            return frames.permute(0, 3, 1, 2), None, None
        hidden_states, sampled = video_super_token_attention(
            hidden_states,
            lambda super_tokens: self.self_attention(super_tokens, **kwargs)[0],
            num_frames,
            (self.frames_in_cell, *self.cell_size),
            self.num_iterations,
        )
        return hidden_states, sampled.super_tokens, sampled.association

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frames_in_cell={self.frames_in_cell}"


class SViTVideoLayer(SViTLayer):
    """A super token transformer block over the frames of a clip, the order of which it learns first."""

    def __init__(self, config: SViTVideoConfig, stage: int, drop_path_rate: float):
        super().__init__(config, stage, drop_path_rate)
        channels = config.hidden_sizes[stage]
        assert config.super_token_frames is not None
        self.temporal_position_embedding = SViTTemporalPositionEmbedding(channels, config.is_causal_in_time)
        self.attention = SViTVideoAttention(
            config,
            channels,
            config.num_attention_heads[stage],
            config.cell_sizes[stage],
            config.num_sampling_iterations[stage],
            frames_in_cell=config.super_token_frames[stage],
        )

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden_states = self.temporal_position_embedding(hidden_states, kwargs["num_frames"], kwargs.get("past"))
        return super().forward(hidden_states, *args, **kwargs)


class SViTVideoStage(SViTStage):
    """Layers of one resolution over the frames of a clip."""

    layer_class: type[SViTLayer] = SViTVideoLayer


class SViTVideoPreTrainedModel(SViTPreTrainedModel):
    """What the video models share, beyond what all SViT models do."""

    config: SViTVideoConfig
    config_class = SViTVideoConfig
    input_modalities = ["video"]
    _no_split_modules = ["SViTPatchEmbeddings", "SViTVideoLayer"]
    # zeros, with which the weights of an image model are complete
    _keys_to_ignore_on_load_missing = [r"temporal_position_embedding"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SViTTemporalPositionEmbedding):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)


class SViTVideoModel(SViTVideoPreTrainedModel, SViTModel):
    """SViT without a head for clips: frames to feature maps, a clip to a global descriptor.

    Args:
        config: The architecture.
        add_pooling_layer: Whether to compute `pooler_output`.

    Example:
        >>> import torch
        >>> from svit_hf import SViTVideoConfig, SViTVideoModel
        >>> model = SViTVideoModel(SViTVideoConfig()).eval()
        >>> outputs = model(torch.randn(1, 4, 3, 64, 64))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([1, 4, 512, 2, 2]), torch.Size([1, 1024]))
    """

    stage_class = SViTVideoStage

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, past: Past | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SViTModelOutput:
        """Compute feature maps.

        Args:
            pixel_values: Clips, shape `(B, T, num_channels, height, width)`, or one clip without `B`, as image
                processors give it for a list of frames; any number of frames, of any size from 32 pixels up.
            past: What a causal model keeps of the frames before these: `{}` to begin with, and then the same again,
                which is changed. In evaluation mode alone.
            **kwargs: As in `SViTModel.forward`.

        Returns:
            `SViTModelOutput` with `last_hidden_state` and `hidden_states` of shape `(B, T, C, H, W)` and
            `pooler_output`, the mean over the frames, those in `past` too, of shape `(B, projection_dim)`. Where
            attention goes over time, `attentions` are among all super tokens, or tokens, of a clip, and, unless the
            model is causal, `super_tokens` have the shape `(B, C, Gt, Gh, Gw)` and `associations` `(B, G, P, 27)`;
            elsewhere frames are a batch of `B * T` images.
        """
        if pixel_values.ndim == 4:
            pixel_values = pixel_values.unsqueeze(0)
        if pixel_values.ndim != 5 or pixel_values.shape[1] == 0:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected is (batch, frames, channels, height, "
                "width) with at least one frame, or one clip without the batch."
            )
        if past is not None and (self.training or not self.config.is_causal_in_time):
            raise ValueError(
                f"`past` is given, but `is_causal_in_time` is {self.config.is_causal_in_time} in the config and "
                f"`training` is {self.training}; only a causal model in evaluation mode takes frames as they come."
            )
        clips = pixel_values.shape[:2]
        in_time: Any = {"num_frames": clips[1], "past": past}
        outputs = super().forward(pixel_values.flatten(0, 1), return_dict=True, **in_time, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.unflatten(0, clips)
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(states.unflatten(0, clips) for states in outputs.hidden_states)
        if outputs.pooler_output is not None:
            pooled = outputs.pooler_output.unflatten(0, clips)
            if past is not None:
                pooled = past[self] = torch.cat([past.get(self, pooled[:, :0]), pooled], dim=1)
            outputs.pooler_output = pooled.mean(dim=1)
        return outputs


class SViTForVideoClassification(SViTVideoPreTrainedModel, SViTForImageClassification):
    """SViT with a linear classifier on top of the global descriptor of a clip.

    `SViTForVideoClassification.from_pretrained` loads the checkpoints of image classifiers too. To a clip that stands
    still such a model answers what the image classifier answers to its frame.

    Example:
        >>> import torch
        >>> from svit_hf import SViTForVideoClassification, SViTVideoConfig
        >>> model = SViTForVideoClassification(SViTVideoConfig(num_labels=10)).eval()
        >>> model(torch.randn(1, 4, 3, 64, 64)).logits.shape
        torch.Size([1, 10])
    """

    base_model_class = SViTVideoModel


__all__ = ["SViTForVideoClassification", "SViTVideoModel", "SViTVideoPreTrainedModel"]
