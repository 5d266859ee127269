# SPDX-License-Identifier: Apache-2.0
"""Configuration of SViT for clips: that of SViT, and how super tokens reach through time."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig
from .own_code_svit import write_code  # noqa: F401
from .samplers_svit import SUPER_TOKEN_SAMPLERS  # noqa: F401
from .super_tokens_svit import sample_super_tokens  # noqa: F401


VIDEO_AUTO_MAP = {
    "AutoConfig": "configuration_video_svit.SViTVideoConfig",
    "AutoModel": "modeling_video_svit.SViTVideoModel",
    "AutoModelForVideoClassification": "modeling_video_svit.SViTForVideoClassification",
}
# the same beside a video_preprocessor_config.json
VIDEO_PROCESSOR_AUTO_MAP = {"AutoVideoProcessor": "video_processing_svit.SViTVideoProcessor"}


@strict
class SViTVideoConfig(SViTConfig):
    """Architecture of an SViT for clips: all fields of `SViTConfig`, and three more.

    The config of an image model loads as one of a video model, with the defaults of these three.

    Args:
        num_frames: Frames that pipelines and processors take from a video. Not a limit: the model takes any number.
        super_token_frames: One entry per stage: how many frames the cell of a super token holds. 0 keeps attention
            within each frame. Where `super_token_sizes` is 1, and attention plain, 1 means attention among all tokens
            of all frames. By default 2 where there are super tokens (1 if `is_causal_in_time`), 1 in the last stage,
            and else 0, since attention among all tokens is costly on large maps.
        is_causal_in_time: Whether a frame sees none of those after it, so that frames can be given as they come. Super
            tokens then are those of each frame, and attend to those of the frames up to it.

    Raises:
        StrictDataclassFieldValidationError: If a field has the wrong type.
        ValueError: If a value, or a combination of values, is not possible; the message names the field.

    Example:
        >>> from svit_hf import SViTVideoConfig
        >>> SViTVideoConfig(num_labels=10).super_token_frames
        [2, 2, 0, 1]
    """

    model_type = "svit_video"
    code_auto_map = VIDEO_AUTO_MAP

    num_frames: int = 16
    super_token_frames: list[int] | tuple[int, ...] | None = None
    is_causal_in_time: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.super_token_frames is None:
            last = len(self.super_token_sizes) - 1
            self.super_token_frames = [
                int(stage == last) if cell in (1, [1, 1], (1, 1)) else 2 - self.is_causal_in_time
                for stage, cell in enumerate(self.super_token_sizes)
            ]
        self.super_token_frames = list(self.super_token_frames)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json, also that of an image model."""
        content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if content.get("model_type") == SViTConfig.model_type:
            content["model_type"] = cls.model_type
        return content, unused

    def validate_architecture(self) -> None:
        """Refuse values, and combinations of values, that make no model; called at creation and by every model."""
        super().validate_architecture()
        if self.num_frames < 1:
            raise ValueError(f"`num_frames` is {self.num_frames}; it has to be at least 1.")
        frames = self.super_token_frames or []
        if len(frames) != self.num_stages:
            raise ValueError(f"`super_token_frames` is {frames}; it needs {self.num_stages} entries, one per stage.")
        if self.super_token_mixer == "convolution" or self.attention_kinds != "super_tokens":
            raise ValueError(
                f"`super_token_mixer` is {self.super_token_mixer!r}, `attention_kinds` {self.attention_kinds!r}; over "
                "several frames there are only 'attention' or 'none', and 'super_tokens'."
            )
        for stage, (cell, in_cell) in enumerate(zip(self.cell_sizes, frames, strict=True), 1):
            if in_cell < 0 or (cell == (1, 1) and in_cell > 1):
                raise ValueError(
                    f"`super_token_frames` has {in_cell} for stage {stage}; allowed are 0 (within each frame) and "
                    f"{'1 (among all frames), since its cell is 1 token' if cell == (1, 1) else 'any number above'}."
                )
            if self.is_causal_in_time and in_cell > 1:
                raise ValueError(
                    f"`super_token_frames` has {in_cell} for stage {stage}; with `is_causal_in_time` allowed are 0 "
                    "(within each frame) and 1 (up to that frame)."
                )
            if cell != (1, 1) and in_cell and not self.is_causal_in_time and self.super_token_sampler != "soft":
                raise ValueError(
                    f"`super_token_sampler` is {self.super_token_sampler!r}; super tokens over several frames, "
                    f"`super_token_frames`={frames}, are sampled by 'soft' alone."
                )


__all__ = ["SViTVideoConfig"]
