# SPDX-License-Identifier: Apache-2.0
"""From stored bytes to RGB pictures, and what is done about those that are broken.

`datasets` is never asked to decode: it would end a stream at the first broken image, and read EXIF data unguarded.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from svit_hf.errors import DataError


# what is decoded: Pillow also knows formats that start other programs (EPS starts Ghostscript), refer to other files,
# or hold no pictures; those with plugins count where these are installed
IMAGE_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI",
    "TGA", "TIFF", "WEBP",
)  # fmt: skip
# Pillow gives what these formats say in 16 bits as 32-bit integers
FORMATS_OF_16_BIT = ("PNG", "PPM")
# a run does not stop before it has seen so many broken images, however few images it has read: a single one among the
# first ten says nothing about the data
MIN_BAD_IMAGES = 10
# images named when a run stops
NUM_LISTED = 20
# from 16 bits to 8: 65535 / 255
LEVELS_PER_LEVEL = 257


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is decoded; anything larger counts as broken.

    Args:
        max_pixels: Width times height; the default is Pillow's own limit, a quarter of a gigabyte of RGB.
        max_bytes: Bytes of the encoded picture.
    """

    max_pixels: int = 89_478_485
    max_bytes: int = 256 << 20


DEFAULT_LIMITS = ImageLimits()


class BadImage(NamedTuple):
    """An image that could not be decoded, and why.

    Attributes:
        sample_id: Its place in the source.
        source: The file that it is in.
        row: Its row there, from 0.
        reason: What went wrong.
    """

    sample_id: int
    source: str
    row: int
    reason: str


class DecodingError(Exception):
    """Bytes that are no picture, or none that is decoded here."""


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that can be decoded here."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in _formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def decode_image(stored: bytes | str | None, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a picture completely, as RGB in 8 bits.

    The EXIF orientation is applied; EXIF data that cannot be read is ignored. Alpha is dropped and not blended, as by
    the official loader. 16-bit grey is divided by 257, whatever the brightest pixel of the picture is. Grey in 32-bit
    integers or floating point has no range that everybody agrees on, and is refused.

    Args:
        stored: The encoded bytes, or a path of a file with them.
        limits: The largest picture to decode.

    Raises:
        DecodingError: If these are no bytes of a picture, not all of them, too many, or of a mode or format that is
            not decoded.
    """
    with opened_image(stored, limits) as image:
        return to_upright_rgb(image)


@contextmanager
def opened_image(stored: bytes | str | None, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Image.Image]:
    """Give a picture with all of its pixels decoded, in the mode that it is stored in; the arguments are as above.

    Raises:
        DecodingError: As above, also for what fails in the block.
    """
    if not stored:
        raise DecodingError("there are no bytes")
    try:
        num_bytes = len(stored) if isinstance(stored, bytes) else os.stat(stored).st_size  # noqa: PTH116 - a string
        if num_bytes > limits.max_bytes:
            raise DecodingError(f"it has {num_bytes} bytes; `max_image_bytes` allows {limits.max_bytes}")
        if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
            # Pillow has a limit of its own, for the whole process
            Image.MAX_IMAGE_PIXELS = limits.max_pixels
        with warnings.catch_warnings():
            # of damaged EXIF data, odd palettes, many pixels: not worth a line per image
            warnings.simplefilter("ignore")
            source = io.BytesIO(stored) if isinstance(stored, bytes) else stored
            with Image.open(source, formats=_formats()) as image:
                width, height = image.size
                if width * height > limits.max_pixels:
                    raise DecodingError(
                        f"it has {width}x{height} pixels; `max_image_pixels` allows {limits.max_pixels}"
                    )
                image.load()
                yield image
    except DecodingError:
        raise
    except UnidentifiedImageError as error:
        raise DecodingError("it is no picture, or in a format that is not decoded here") from error
    # Pillow's plugins raise whatever parsing broken bytes ends in: OSError, SyntaxError, struct.error, ValueError, ...
    except Exception as error:
        raise DecodingError(f"{type(error).__name__}: {error}") from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as `decode_image` does, of one that is open already.

    Raises:
        DecodingError: If its mode has no range that everybody agrees on.
    """
    return _to_rgb(_upright(image), image.format)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # whatever parsing broken EXIF data ends in; the pixels are whole
    except Exception:
        return image


def _to_rgb(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and format in FORMATS_OF_16_BIT):
        values = np.asarray(image).astype(np.float32) / LEVELS_PER_LEVEL
        image = Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8))
    elif image.mode.startswith(("I", "F")):
        kind = "floating point" if image.mode.startswith("F") else "32-bit integers"
        raise DecodingError(f"it is grey in {kind}, whose range is not known; convert it to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        # the detour drops the same alpha, without Pillow's warning about it
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass
class BadImageTally:
    """Counts of images and broken ones over all ranks, which stop a run that has too many.

    A run may go on while fewer than 10 images were broken, or no more than `max_bad_share` of those read.

    Args:
        max_bad_share: Largest share of broken images.

    Attributes:
        num_images: Images read, broken ones included.
        num_bad: Broken ones.
        listed: The first broken ones that this process heard of.
    """

    max_bad_share: float
    num_images: int = 0
    num_bad: int = 0
    listed: list[BadImage] = field(default_factory=list)

    def note(self, bad_images: list[BadImage]) -> None:
        """Keep broken images of this rank, to name them; `add` counts them."""
        self.listed += bad_images[: NUM_LISTED - len(self.listed)]

    def add(self, num_images: int, num_bad: int) -> None:
        """Count, and judge.

        Args:
            num_images: Images that were read since the last call, summed over ranks, broken ones included.
            num_bad: The broken ones among them, summed over ranks.

        Raises:
            DataError: If too many are broken; the same on every rank, which names those that it knows.
        """
        self.num_images += num_images
        self.num_bad += num_bad
        if self.num_bad < MIN_BAD_IMAGES or self.num_bad <= self.max_bad_share * self.num_images:
            return
        lines = [f"  {bad.source}, row {bad.row}: {bad.reason}" for bad in self.listed]
        raise DataError(
            f"{self.num_bad} of {self.num_images} images could not be decoded, a share of "
            f"{self.num_bad / self.num_images:.2%}; `max_bad_share` allows {self.max_bad_share:.2%}. `svit-hf data "
            "inspect` lists them all. The first ones:\n" + "\n".join(lines)
        )
