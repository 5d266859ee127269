# SPDX-License-Identifier: Apache-2.0
"""Video processor of SViT: frames of a video, each prepared as the image processor on torchvision prepares a picture.

Importable only with torchvision. Without it, the image processors prepare a list of frames as one clip.
"""

import os
from typing import Any

import torch
from transformers.image_utils import SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import load_video

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .cells_svit import count_cells  # noqa: F401
from .configuration_svit import SViTConfig  # noqa: F401
from .configuration_video_svit import VIDEO_PROCESSOR_AUTO_MAP
from .image_processing_pil_svit import SViTImageProcessorPil  # noqa: F401
from .image_processing_svit import SViTImageProcessor
from .image_transforms_svit import SViTImageProcessing  # noqa: F401
from .own_code_svit import write_code
from .samplers_svit import SUPER_TOKEN_SAMPLERS  # noqa: F401
from .super_tokens_svit import sample_super_tokens  # noqa: F401


class SViTVideoProcessorKwargs(VideosKwargs, total=False):
    """Arguments of every video processor, and one more: see `SViTImageProcessorKwargs`."""

    crop_pct: float | int | None


class SViTVideoProcessor(SViTImageProcessor, BaseVideoProcessor):
    """Preparation of videos: `num_frames` frames, evenly over the video, each as `SViTImageProcessor` prepares it.

    Takes paths, addresses, arrays and tensors `(T, H, W, C)` or `(T, C, H, W)`, lists of pictures, and lists of all
    these; gives `pixel_values` of shape `(B, T, C, H, W)`. Paths and addresses are decoded by PyAV, the package `av`.
    `do_sample_frames=False` takes all frames.
    """

    valid_kwargs: Any = SViTVideoProcessorKwargs
    model_input_names = ["pixel_values"]

    do_sample_frames = True
    num_frames = 16

    def __call__(self, videos: Any, **kwargs: Any) -> Any:
        """Prepare one video or several."""
        return BaseVideoProcessor.__call__(self, videos, **kwargs)

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Decode a path or an address, or a list of them."""
        if isinstance(video_url_or_urls, list):
            return list(zip(*[self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls], strict=True))
        return load_video(video_url_or_urls, backend="pyav", sample_indices_fn=sample_indices_fn)

    def resize(
        self, image: torch.Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Resize `(B, T, C, H, W)` until every frame just covers `size`, proportions kept."""
        frames = super().resize(image.flatten(0, 1), size, resample, antialias)
        return frames.unflatten(0, image.shape[:2])

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the JSON file; a processor that was loaded beside its code is written with the code beside it."""
        BaseVideoProcessor.to_json_file(self, json_file_path)
        if getattr(self, "auto_map", None):
            write_code(json_file_path, VIDEO_PROCESSOR_AUTO_MAP)

    def _preprocess(self, videos: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        prepared = super()._preprocess(videos, *args, **kwargs)
        prepared["pixel_values"] = prepared.pop("pixel_values_videos")
        return prepared


__all__ = ["SViTVideoProcessor"]
