# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks: from stored bytes to arrays, and the part of them that a model sees.

A `View` is what augmentation decides; pixels, masks and boxes all follow from it, so that they move together.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from svit_hf.data.decoding import DecodingError, opened_image, to_upright_rgb
from svit_hf.errors import DataError, SViTError
from svit_hf.tasks.heads import IMAGENET_MEAN, IMAGENET_STD


CROP_ATTEMPTS = 10
_MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
_STD = torch.tensor(IMAGENET_STD)[:, None, None]


class Origin(NamedTuple):
    """Place of a sample in its data.

    Attributes:
        file: The file that it is in.
        row: Its row there, from 0, or its name.
    """

    file: str
    row: int | str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}" if isinstance(self.row, int) else f"{self.file}, {self.row}"


class BrokenPictureError(DataError):
    """Error about a picture that cannot be decoded; its annotation may be right."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training sample.

    Args:
        horizontal_flip: Probability of a mirrored sample.
        vertical_flip: Probability of one upside down.
        scale: Smallest and largest share of the area that is cropped; (1, 1) resizes the whole picture.
        ratio: Smallest and largest width of a crop over its height, relative to the size that the model takes.
        color: Largest change of brightness and of contrast, as the logarithm of a factor; one for all channels, and
            half as much for each by itself.
        min_visible: Objects of which a smaller share is inside of the crop are not there.
        size: Height and width of training examples, in pixels, where they are smaller than what the model takes
            afterwards: crops are cheaper than whole pictures at the same resolution.
        quarter_turn: Probability of a sample turned by a quarter, to the left or to the right; not where no
            crop fits into the picture.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color: float = 0.0
    min_visible: float = 0.3
    size: tuple[int, int] | None = None
    quarter_turn: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "quarter_turn", "color", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise SViTError(f"`{name}` is {getattr(self, name)}; allowed is 0 to 1.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise SViTError(f"`scale` is {self.scale}; allowed are two shares of the area, ascending, up to 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise SViTError(f"`ratio` is {self.ratio}; allowed are two positive ratios, ascending.")


@dataclass(frozen=True)
class View:
    """The part of a picture that a model sees, and how.

    Attributes:
        left: First column of the part, in pixels of the picture.
        top: First row.
        width: Columns of the part.
        height: Rows.
        size: Height and width that the part is resized to.
        is_mirrored: Whether left and right are swapped after that.
        is_upside_down: Whether top and bottom are.
        brightnesses: Factors of the channels.
        contrasts: Factors of their distance from the mean of the part, after that.
        is_transposed: Whether rows and columns are swapped before anything is flipped; with one flip, that is a
            quarter turn.
    """

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    is_mirrored: bool = False
    is_upside_down: bool = False
    brightnesses: tuple[float, ...] = (1.0, 1.0, 1.0)
    contrasts: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_transposed: bool = False

    @classmethod
    def whole(cls, picture_size: tuple[int, int], size: tuple[int, int]) -> "View":
        """Show all of a picture of `picture_size` (height, width)."""
        return cls(0, 0, picture_size[1], picture_size[0], size)

    @classmethod
    def random(
        cls, picture_size: tuple[int, int], size: tuple[int, int], options: Augmentation, key: tuple[int, ...]
    ) -> "View":
        """Draw a view: a pure function of its arguments; `key` is seed, epoch, sample and view."""
        random = np.random.default_rng([number % 2**64 for number in key])
        mirrored, upside_down = random.random() < options.horizontal_flip, random.random() < options.vertical_flip
        is_turned = options.quarter_turn > 0 and random.random() < options.quarter_turn
        is_to_the_right = is_turned and random.random() < 0.5
        # the picture as the model sees it
        frame = picture_size[::-1] if is_turned else picture_size
        height, width = frame
        left, top = 0, 0
        if options.scale != (1, 1):
            shape = size[1] / size[0]
            for _ in range(CROP_ATTEMPTS):
                area = frame[0] * frame[1] * random.uniform(*options.scale)
                ratio = shape * math.exp(random.uniform(math.log(options.ratio[0]), math.log(options.ratio[1])))
                crop = (round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio)))
                if 0 < crop[0] <= frame[0] and 0 < crop[1] <= frame[1]:
                    height, width = crop
                    break
            else:
                # a whole picture would be squeezed into its other shape
                is_turned, frame = False, picture_size
                height, width = frame
            top = int(random.integers(frame[0] - height + 1))
            left = int(random.integers(frame[1] - width + 1))
        if is_turned:
            left, top, width, height = top, left, height, width
            mirrored, upside_down = mirrored != is_to_the_right, upside_down == is_to_the_right
        view = cls(left, top, width, height, size, mirrored, upside_down, is_transposed=is_turned)
        if not options.color:
            return view
        shared, own = random.uniform(-1, 1, (2, 1)), random.uniform(-0.5, 0.5, (2, 3))
        brightnesses, contrasts = np.exp(options.color * (shared + own)).tolist()
        return replace(view, brightnesses=tuple(brightnesses), contrasts=tuple(contrasts))

    def of_picture(self, picture: Image.Image) -> torch.Tensor:
        """Return normalised pixels, `(3, height, width)`, float32."""
        image = picture.crop((self.left, self.top, self.left + self.width, self.top + self.height))
        pixels = np.asarray(image.resize(self._resized[::-1], Image.Resampling.BILINEAR))
        tensor = torch.from_numpy(self._move(pixels, 0).copy()).permute(2, 0, 1).contiguous().float().div_(255)
        if {*self.brightnesses, *self.contrasts} != {1.0}:
            brightnesses, contrasts = torch.tensor([self.brightnesses, self.contrasts])[:, :, None, None]
            tensor.mul_(brightnesses)
            mean = tensor.mean((1, 2), keepdim=True)
            tensor.sub_(mean).mul_(contrasts).add_(mean).clamp_(0, 1)
        return tensor.sub_(_MEAN).div_(_STD)

    def of_masks(self, masks: np.ndarray) -> np.ndarray:
        """Return the nearest values of masks `(..., H, W)`, shape `(..., height, width)`."""
        height, width = self._resized
        # the centre of each pixel decides, as in Pillow's own nearest
        rows = self.top + ((np.arange(height) + 0.5) * self.height / height).astype(np.int64)
        columns = self.left + ((np.arange(width) + 0.5) * self.width / width).astype(np.int64)
        return np.ascontiguousarray(self._move(masks[..., rows[:, None], columns], masks.ndim - 2))

    def of_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes `(N, 4)` of x1, y1, x2, y2 in pixels of the view, clipped to it, and their visible shares."""
        shift = np.array([self.left, self.top] * 2)
        edges = np.array([self.width, self.height] * 2)
        inside = np.clip(boxes - shift, 0, edges)
        visible = _areas(inside) / np.maximum(_areas(boxes), np.finfo(np.float64).tiny)
        scaled = inside * (np.array(self._resized[::-1] * 2) / edges)
        if self.is_transposed:
            scaled = scaled[:, [1, 0, 3, 2]]
        if self.is_mirrored:
            scaled[:, [0, 2]] = self.size[1] - scaled[:, [2, 0]]
        if self.is_upside_down:
            scaled[:, [1, 3]] = self.size[0] - scaled[:, [3, 1]]
        return scaled, visible

    @property
    def _resized(self) -> tuple[int, int]:
        return (self.size[1], self.size[0]) if self.is_transposed else self.size

    def _move(self, array: np.ndarray, row_axis: int) -> np.ndarray:
        if self.is_transposed:
            array = array.swapaxes(row_axis, row_axis + 1)
        if self.is_mirrored:
            array = np.flip(array, row_axis + 1)
        return np.flip(array, row_axis) if self.is_upside_down else array


def decode_picture(stored: object, origin: Origin) -> Image.Image:
    """Return a picture as `svit_hf.data.decoding.decode_image` does: RGB in 8 bits, upright.

    Args:
        stored: A mapping with `bytes` (as parquet files have it), encoded bytes, a `Path`, or a Pillow image. A path
            inside of data is not followed.
        origin: Where it is from, for messages.

    Raises:
        BrokenPictureError: If it is no picture, or not all of one.
    """
    with _opened(stored, origin, "image") as image:
        return to_upright_rgb(image)


def decode_mask(stored: object, origin: Origin, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a mask of one channel as int64 `(H, W)`; palette indices, not colours.

    Args:
        stored: As in `decode_picture`.
        origin: Where it is from, for messages.
        size: Height and width of its picture.

    Raises:
        DataError: If it is no picture, one with several channels or fractions, or of another size than its picture.
    """
    with _opened(stored, origin, "mask") as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise DecodingError(
                f"it has mode {image.mode!r}; expected is one channel of whole numbers (L, P, I, 1), stored without "
                "loss, as PNG does"
            )
        mask = np.asarray(image).astype(np.int64)
    if size is not None and mask.shape != size:
        raise DataError(
            f"{origin}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[1]} x {size[0]}."
        )
    return mask


@contextmanager
def _opened(stored: object, origin: Origin, what: str) -> Iterator[Image.Image]:
    if isinstance(stored, Mapping):
        stored = stored.get("bytes")
    kind = BrokenPictureError if what == "image" else DataError
    try:
        if isinstance(stored, Image.Image):
            yield stored
        elif isinstance(stored, (bytes, Path)) and stored:
            with opened_image(stored if isinstance(stored, bytes) else str(stored)) as image:
                yield image
        else:
            raise kind(f"{origin}: there is no {what}.")
    except DecodingError as error:
        raise kind(f"{origin}: the {what} cannot be read: {error}.") from error


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
