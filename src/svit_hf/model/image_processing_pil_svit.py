# SPDX-License-Identifier: Apache-2.0
"""Image processor of SViT on Pillow and NumPy: needs no torchvision, and equals the official transform bit for bit."""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, SizeDict

from .image_transforms_svit import (
    Array,
    SViTImageProcessing,
    SViTImageProcessorKwargs,
    covering_size,
    has_one_channel,
    resampled_range,
    size_in_pixels,
    to_array,
)

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .own_code_svit import write_code  # noqa: F401


class SViTImageProcessorPil(SViTImageProcessing, PilBackend):
    """Preparation of pictures as in the official evaluation, with Pillow.

    Its arguments, and what becomes of which picture, are those of `SViTImageProcessing`.
    """

    valid_kwargs = SViTImageProcessorKwargs

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> Array:
        """Turn one picture into a uint8 or float32 array of shape `(C, H, W)`."""
        if isinstance(image, Image.Image):
            input_data_format = ChannelDimension.LAST
        pixels = to_array(image, do_convert_rgb, has_one_channel(**kwargs))
        return self._to_channels_first(pixels, input_data_format, do_convert_rgb=do_convert_rgb, **kwargs)

    def resize(
        self, image: Array, size: SizeDict, resample: Any = None, reducing_gap: int | None = None, **kwargs: Any
    ) -> Array:
        """Resize `(C, H, W)` until it just covers `size`, proportions kept.

        One channel at a time, in 8 bits or as floats: the same bits as for all at once, and a fourth channel is never
        taken for alpha.
        """
        height, width = covering_size((image.shape[-2], image.shape[-1]), size_in_pixels(size))
        low, high = (0, 255) if image.dtype == np.uint8 else resampled_range(image.min(), image.max())
        # rows first, then columns, each result kept in range: for 8 bits Pillow does just that by itself
        for edges in ((width, image.shape[-2]), (width, height)):
            image = np.stack([np.asarray(Image.fromarray(band).resize(edges, resample)) for band in image])
            image = image.clip(low, high)
        return image

    def center_crop(self, image: Array, size: SizeDict, **kwargs: Any) -> Array:
        """Cut `size` from the centre of `(C, H, W)`; what the image lacks is filled with 0.

        Source: `CenterCrop` of torchvision, which the official transform uses. It rounds half a pixel to the even
        neighbour, where Transformers' own function rounds down.
        """
        area = size_in_pixels(size)
        missing = [max(0, wanted - edge) for wanted, edge in zip(area, image.shape[-2:], strict=True)]
        image = np.pad(image, [(0, 0), *((edge // 2, (edge + 1) // 2) for edge in missing)])
        top, left = (round((edge - wanted) / 2) for wanted, edge in zip(area, image.shape[-2:], strict=True))
        return image[..., top : top + area[0], left : left + area[1]]
