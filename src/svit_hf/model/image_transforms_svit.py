# SPDX-License-Identifier: Apache-2.0
"""What the two image processors share: the official evaluation rule, and how any picture becomes pixels.

The backends add only what differs between them, resizing and cropping: `image_processing_svit.py` with torchvision,
`image_processing_pil_svit.py` with Pillow and NumPy.

Source: `build_transform` in `visualization/datasets.py` of hhb072/STViT@c9ed9a4.
Differs from it in: sizes of 32 and less, for which the official code does not resize.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .own_code_svit import write_code


logger = logging.get_logger(__name__)

# the official rule: up to this size the crop leaves a margin of the resized picture out, above it none
LARGEST_SIZE_WITH_MARGIN = 224
CROP_PCT_WITH_MARGIN = 224 / 256

# what Transformers knows of the code beside a preprocessor_config.json, by backend
BACKENDS = {
    "torchvision": "image_processing_svit.SViTImageProcessor",
    "pil": "image_processing_pil_svit.SViTImageProcessorPil",
}

MAX_8_BIT = 255
MAX_16_BIT = 65535
RGB_CHANNELS = 3

Array = NDArray[Any]
Pixels = TypeVar("Pixels", Array, torch.Tensor)


class SViTImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of every image processor, and one more.

    Args:
        crop_pct: Share of the resized picture's edge that the crop keeps, above 0 and up to 1. `None` is the official
            rule: 224/256 for a `size` up to 224, 1 above.
    """

    crop_pct: float | int | None


class SViTImageProcessing(BaseImageProcessor):
    """Arguments and steps common to both backends; not usable by itself.

    `size` is what comes out: a square of S x S pixels for `{"shortest_edge": S}`, or the rectangle
    `{"height": h, "width": w}`. A picture is resized, proportions kept, until it just covers `size / crop_pct`, and
    `size` is cut from its centre. With `do_center_crop=True`, `crop_size` is cut instead; without `do_resize` that is
    the only crop there is.

    With `do_convert_rgb` every picture becomes RGB, in 8 bits, or in floats if floats were given:

    - grey is repeated; alpha is dropped and not blended, as by the official loader; palette, CMYK, YCbCr and other
      modes are converted by Pillow;
    - unsigned 16-bit values are divided by 257 and not cut off at 255; other integers up to 255 count as 8 bits, up to
      65535 as 16 bits, and beyond are refused;
    - arrays and tensors are `(H, W)`, `(C, H, W)` or `(H, W, C)` with 1 to 4 channels.

    Without it, and with any other number of entries in `image_mean` than three, channels and values stay as stored:
    `image_mean` and `image_std` need one entry per channel, and `rescale_factor` has to suit the values. Only where
    they have one entry, Pillow images in colour become grey, since pipelines hand over nothing else. Either way
    booleans become 0 and 255, and the EXIF orientation of Pillow images and files is applied.

    Floats are expected in 0..255, or in 0..1 with `do_rescale=False`. They are resized as floats, and what lay within
    one of these ranges stays there.
    """

    valid_kwargs = SViTImageProcessorKwargs

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_pct: float | None = None
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load paths, addresses and base64 strings with Pillow; pass pictures through.

        Pillow in both backends, because decoders differ by more than rounding, and local files without an early
        conversion to RGB, because that cuts 16 bits off at 255.
        """
        # Path.is_file would raise for a base64 string, which is too long for a file name
        if isinstance(image_url_or_urls, (str, os.PathLike)) and os.path.isfile(image_url_or_urls):  # noqa: PTH113
            with Image.open(image_url_or_urls) as image:
                return ImageOps.exif_transpose(image)
        return ImageProcessingMixin.fetch_images(self, image_url_or_urls)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields to save; `crop_pct` is among them also when it is `None`."""
        return {**super().to_dict(), "crop_pct": self.crop_pct}

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the JSON file; a processor that was loaded beside its code is written with the code beside it."""
        super().to_json_file(json_file_path)
        if getattr(self, "auto_map", None):
            # without torchvision, remote code was loaded without the file that needs it
            has = {backend: Path(__file__).with_name(f"{name.split('.')[0]}.py") for backend, name in BACKENDS.items()}
            write_code(
                json_file_path,
                {"AutoImageProcessor": {backend: BACKENDS[backend] for backend in has if has[backend].is_file()}},
            )

    def _prepare_image_like_inputs(
        self, images: Any, *args: Any, input_data_format: str | ChannelDimension | None = None, **kwargs: Any
    ) -> list[Any]:
        images = _with_channel_axis(images, last=input_data_format == ChannelDimension.LAST)
        mean = kwargs["image_mean"]
        if kwargs["do_normalize"] and isinstance(mean, tuple) and len(mean) != RGB_CHANNELS:
            kwargs["do_convert_rgb"] = False
        return super()._prepare_image_like_inputs(images, *args, input_data_format=input_data_format, **kwargs)

    def _standardize_kwargs(self, size: Any = None, crop_pct: float | None = None, **kwargs: Any) -> dict[str, Any]:
        if crop_pct is not None and not (isinstance(crop_pct, (int, float)) and 0 < crop_pct <= 1):
            raise ValueError(f"`crop_pct` must be None or a number above 0 and up to 1, got {crop_pct!r}.")
        allowed = ({"shortest_edge"}, {"height", "width"})
        if isinstance(size, (dict, SizeDict)) and set(dict(size)) not in allowed:
            raise ValueError(
                f"`size` must have the key 'shortest_edge' or the keys 'height' and 'width', got {dict(size)}."
            )
        standardized: dict[str, Any] = super()._standardize_kwargs(size=size, **kwargs)
        edges = dict(standardized["size"] or {})
        if not all(isinstance(edge, int) and edge > 0 for edge in edges.values()):
            raise ValueError(f"`size` must be given in whole pixels, at least 1, got {edges}.")
        return {**standardized, "crop_pct": crop_pct}

    def _preprocess(self, images: list[Any], *args: Any, crop_pct: float | None = None, **kwargs: Any) -> BatchFeature:
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        if kwargs["do_resize"]:
            height, width = size_in_pixels(kwargs["size"])
            covered = covered_area((height, width), crop_pct)
            kwargs["size"] = SizeDict(height=covered[0], width=covered[1])
            if not kwargs["do_center_crop"]:
                kwargs.update(do_center_crop=True, crop_size=SizeDict(height=height, width=width))
        return super()._preprocess(images, *args, **kwargs)

    def _to_channels_first(
        self, image: Pixels, input_data_format: str | ChannelDimension | None, **kwargs: Any
    ) -> Pixels:
        """Bring uint8 or float32 pixels to `(C, H, W)`, with the channels that are wanted."""
        do_convert_rgb, mean = kwargs["do_convert_rgb"], kwargs["image_mean"]
        counts = {1, 2, 3, 4}
        if not do_convert_rgb and kwargs["do_normalize"] and isinstance(mean, tuple):
            counts = {len(mean)}
        elif not do_convert_rgb and input_data_format:
            counts = set(image.shape)
        image = _move_channels_first(image, input_data_format, counts)
        if do_convert_rgb:
            image = image[:RGB_CHANNELS] if len(image) >= RGB_CHANNELS else image[[0, 0, 0]]
        divides_by_255 = kwargs["do_rescale"] and kwargs["rescale_factor"] == 1 / MAX_8_BIT
        if divides_by_255 and "float" in str(image.dtype) and 0 <= image.min() < image.max() <= 1:
            logger.warning_once(
                "A float image lies within 0 and 1 and is divided by 255 all the same, because `do_rescale` is True. "
                "If 0 to 1 is its range, pass `do_rescale=False`."
            )
        return image


def size_in_pixels(size: SizeDict) -> tuple[int, int]:
    """Read `(height, width)` off a size; one shortest edge stands for a square."""
    height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
    assert height is not None
    assert width is not None
    return height, width


def covered_area(size: tuple[int, int], crop_pct: float | None) -> tuple[int, int]:
    """Return the area that a resized picture covers before `size` is cut from it; both `(height, width)` in pixels."""
    if crop_pct is None:
        crop_pct = CROP_PCT_WITH_MARGIN if min(size) <= LARGEST_SIZE_WITH_MARGIN else 1.0
    return int(size[0] / crop_pct), int(size[1] / crop_pct)


def covering_size(image_size: tuple[int, int], area: tuple[int, int]) -> tuple[int, int]:
    """Scale `image_size` until it just covers `area`, proportions kept; both `(height, width)` in pixels.

    For a square area this is the official resize of the shortest edge, its rounding down of the longer one included.
    """
    (height, width), (area_height, area_width) = image_size, area
    if area_height * width >= area_width * height:
        return area_height, area_height * width // height
    return area_width * height // width, area_width


def resampled_range(low: float, high: float) -> tuple[float, float]:
    """Give the bounds for a resized float picture whose values went from `low` to `high`.

    Bicubic weights overshoot at edges. In 8 bits, the official arithmetic, that is cut off; so it is for floats that
    have one of the two usual ranges. Others are left alone.
    """
    if low >= 0 and high <= MAX_8_BIT:
        return 0.0, 1.0 if high <= 1 else float(MAX_8_BIT)
    return float("-inf"), float("inf")


def has_one_channel(do_normalize: bool | None = None, image_mean: Any = None, **kwargs: Any) -> bool:
    """Whether the arguments of a processor are those of a model for grey pictures."""
    return bool(do_normalize) and isinstance(image_mean, tuple) and len(image_mean) == 1


def to_array(image: Any, do_convert_rgb: bool | None, to_grey: bool = False) -> Array:
    """Turn a Pillow image, array or tensor into a uint8 or float32 array; a Pillow image gives `(H, W, C)`.

    With `to_grey` a Pillow image in colour becomes grey.

    Raises:
        ValueError: If the values are neither booleans, integers nor floats, or integers beyond 16 bits that were to
            become RGB.
    """
    array: Array
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
    elif isinstance(image, Image.Image):
        array = _pillow_to_array(image, do_convert_rgb, to_grey)
    else:
        array = image
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    is_integer = np.issubdtype(array.dtype, np.integer)
    if np.issubdtype(array.dtype, np.floating) or (is_integer and not do_convert_rgb):
        return array.astype(np.float32)
    if not is_integer:
        raise ValueError(f"An image must hold booleans, integers or floats, got dtype {array.dtype}.")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > MAX_16_BIT:
        raise ValueError(f"An integer image must lie within 0 and {MAX_16_BIT} to become RGB, got {low} to {high}.")
    # newbyteorder: Pillow also hands out big-endian pixels
    if high > MAX_8_BIT or array.dtype.newbyteorder("=") == np.uint16:
        array = np.round(array / (MAX_16_BIT / MAX_8_BIT))
    return array.astype(np.uint8)


def _pillow_to_array(image: Image.Image, do_convert_rgb: bool | None, to_grey: bool) -> Array:
    image = ImageOps.exif_transpose(image)
    if to_grey and not image.mode.startswith(("1", "L", "I", "F")):
        image = image.convert("L")
    # the wide grey modes stay: Pillow would cut their values off at 255
    if do_convert_rgb and not image.mode.startswith(("I", "F")):
        # the detour drops the same alpha, without Pillow's warning about it
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("RGB")
    return np.atleast_3d(np.array(image))


def _with_channel_axis(images: Any, last: bool) -> Any:
    if isinstance(images, (list, tuple)):
        return [_with_channel_axis(image, last) for image in images]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == len("HW"):
        return images[..., None] if last else images[None]
    return images


def _move_channels_first(image: Pixels, input_data_format: str | ChannelDimension | None, counts: set[int]) -> Pixels:
    """Find the axis of the channels, whose number is one of `counts`, and move it to the front."""
    shape = tuple(image.shape)
    if image.ndim != len("CHW") or 0 in shape:
        raise ValueError(f"An image must be (H, W), (C, H, W) or (H, W, C) and not empty, got shape {shape}.")
    if input_data_format is None:
        # three win: a single row of RGB pixels is likelier than a grey picture three pixels wide
        likely = counts & {RGB_CHANNELS} & {shape[0], shape[-1]} or counts
        input_data_format = ChannelDimension.FIRST if shape[0] in likely else ChannelDimension.LAST
    if input_data_format == ChannelDimension.LAST:
        image = image.permute(2, 0, 1) if isinstance(image, torch.Tensor) else image.transpose(2, 0, 1)
    if len(image) not in counts:
        wanted = " or ".join(map(str, sorted(counts)))
        raise ValueError(
            f"An image must have {wanted} channels on its first or last axis, got shape {shape}. Without "
            "`do_convert_rgb`, `image_mean` and `image_std` set the number of channels."
        )
    return image
