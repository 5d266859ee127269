# SPDX-License-Identifier: Apache-2.0
"""From stored bytes to RGB pictures, and what is done about those that are broken.

`datasets` is never asked to decode: it would end a stream at the first broken image, and read EXIF data unguarded.
"""

import io
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from svit_hf.errors import DataError


# a run does not stop before it has seen so many broken images, however few images it has read: a single one among the
# first ten says nothing about the data
MIN_BAD_IMAGES = 10
# images named when a run stops
NUM_LISTED = 20

MAX_16_BIT, MAX_8_BIT = 65535, 255


class BadImage(NamedTuple):
    """Say which image could not be decoded, and why.

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
    """Report why bytes are no picture."""


def decode_image(stored: bytes | str | None) -> Image.Image:
    """Decode a picture completely, as RGB in 8 bits.

    The EXIF orientation is applied; EXIF data that cannot be read is ignored. Alpha is dropped and not blended, as by
    the official loader; 16-bit grey is scaled to 8 bits, where Pillow would cut it off.

    Args:
        stored: The encoded bytes, or a path of a file with them.

    Raises:
        DecodingError: If these are no bytes of a picture, or not all of them.
    """
    if not stored:
        raise DecodingError("there are no bytes")
    try:
        with warnings.catch_warnings():
            # of damaged EXIF data, odd palettes, many pixels: not worth a line per image
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
                image.load()
                return _to_rgb(_upright(image))
    # Pillow's plugins raise whatever parsing broken bytes ends in: OSError, SyntaxError, struct.error, ValueError, ...
    except Exception as error:
        raise DecodingError(f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # whatever parsing broken EXIF data ends in; the pixels are whole
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode.startswith("I;16") or values.max() > MAX_8_BIT:
            values = np.round(values * (MAX_8_BIT / MAX_16_BIT))
        image = Image.fromarray(values.clip(0, MAX_8_BIT).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # the detour drops the same alpha, without Pillow's warning about it
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass
class BadImageTally:
    """Count images and broken ones, over all ranks, and stop a run that has too many.

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
