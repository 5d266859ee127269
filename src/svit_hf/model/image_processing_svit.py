# SPDX-License-Identifier: Apache-2.0
"""Image processor of SViT on torchvision: batches and accelerators; equals the official transform within rounding.

Importable only with torchvision. `image_processing_pil_svit.py` holds the one that does without.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ChannelDimension, SizeDict

# remote code is saved with both processors, whichever was loaded; and Transformers before 5.23 copies what a file
# imports, but not what that imports
from .image_processing_pil_svit import SViTImageProcessorPil  # noqa: F401
from .image_transforms_svit import (
    SViTImageProcessing,
    SViTImageProcessorKwargs,
    covering_size,
    has_one_channel,
    resampled_range,
    size_in_pixels,
    to_array,
)
from .own_code_svit import write_code  # noqa: F401


class SViTImageProcessor(SViTImageProcessing, TorchvisionBackend):
    """Preparation of pictures as in the official evaluation, with torchvision.

    Its arguments, and what becomes of which picture, are those of `SViTImageProcessing`. Tensors stay on their device
    unless `device` names another.
    """

    valid_kwargs = SViTImageProcessorKwargs

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Turn one picture into a uint8 or float32 tensor of shape `(C, H, W)`."""
        if isinstance(image, Image.Image):
            input_data_format = ChannelDimension.LAST
        if isinstance(image, torch.Tensor) and device is None:
            device = image.device
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            pixels = image.float()
        elif isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
            pixels = image
        else:
            array = to_array(image, do_convert_rgb, has_one_channel(**kwargs))
            # "W" copies read-only memory: torch warns about memory that it may not write to
            pixels = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        pixels = self._to_channels_first(pixels, input_data_format, do_convert_rgb=do_convert_rgb, **kwargs)
        return pixels.contiguous().to(device=device)

    def resize(
        self, image: torch.Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Resize `(B, C, H, W)` until it just covers `size`, proportions kept."""
        height, width = covering_size((image.shape[-2], image.shape[-1]), size_in_pixels(size))
        is_float = image.is_floating_point()
        ranges = [resampled_range(one.min().item(), one.max().item()) if is_float else (0, 255) for one in image]
        low, high = image.new_tensor(ranges).T.reshape(2, -1, 1, 1, 1)
        # rows first, then columns, each result rounded and kept in range: Pillow's order, on every device
        for edges in ((image.shape[-2], width), (height, width)):
            image = super().resize(image, SizeDict(*edges), resample, antialias).clamp(low, high)
        return image

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """Cut `size` from the centre of `(..., C, H, W)`; what the image lacks is filled with 0."""
        return tvF.center_crop(image, list(size_in_pixels(size)))
