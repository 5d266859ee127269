# SPDX-License-Identifier: Apache-2.0
"""What can be said about data on a command line or in a recipe; checked when it is said."""

import re
from dataclasses import dataclass
from typing import Literal

from svit_hf.data.decoding import DEFAULT_LIMITS, ImageLimits
from svit_hf.errors import SViTError
from svit_hf.option_fields import option


DataFormat = Literal["auto", "hub", "parquet", "webdataset", "imagefolder"]
Interpolation = Literal["bicubic", "bilinear"]
Sampling = Literal["uniform", "balanced"]

FORMATS = ("auto", "hub", "parquet", "webdataset", "imagefolder")
INTERPOLATIONS = ("bicubic", "bilinear")
SAMPLINGS = ("uniform", "balanced")
RANDAUGMENT = re.compile(
    r"rand-m(?P<magnitude>\d+(?:\.\d+)?)(?:-n(?P<num_ops>\d+))?(?:-mstd(?P<std>\d+(?:\.\d+)?))?-inc1"
)


@dataclass(frozen=True)
class DataOptions:
    """Where the images are and how they are read.

    Args:
        path: A data set id of the Hub; parquet files as a file, a glob or a folder; webdataset tars likewise; or a
            folder of images with one folder per class. Files are local or remote (hf://, https://, s3:// and whatever
            else fsspec opens).
        format: What `path` is; auto looks.
        config_name: Configuration of a Hub data set that has several.
        train_split: The split to train on.
        eval_split: The split to evaluate on; by default the first of validation, valid, val and test that exists.
        image_column: Column of the images; found by default.
        label_column: Column of the labels; found by default. `json.label` is a field inside a column.
        multi_label: Whether an image has any number of labels, its label column a list.
        streaming: Read shards in passing (True), or make an index of all images first (False); by default the
            latter for what is local and small enough to copy, and for image folders.
        num_workers: Processes that read and decode for one rank; by default one per CPU of the rank, 8 at most.
        shuffle_block: Rows of a stream that are permuted together, and held in memory by each worker.
        max_bad_share: Share of images that cannot be decoded above which a run stops.
        index: JSON file with the row counts and label names, where counting is expensive; `svit-hf data inspect
            --write-index` makes it.
        validation_share: Share of the training images that is kept for evaluation, where there is no validation
            split: so many of each class. Only of data that are not streamed.
        validation_seed: Another seed keeps other images.
        sampling: uniform shows each training image once per epoch; balanced shows each class equally often. Only of
            data that are not streamed.
        max_image_pixels: Width times height from which on a picture counts as broken, without being decoded.
        max_image_bytes: Encoded bytes from which on a picture counts as broken, without being decoded.
    """

    path: str = ""
    format: DataFormat = "auto"
    config_name: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    multi_label: bool = False
    streaming: bool | None = None
    num_workers: int | None = option(None, at_least=0, changes_freely=True)
    shuffle_block: int = 1024
    max_bad_share: float = option(0.001, changes_freely=True)
    index: str | None = option(None, changes_freely=True)
    validation_share: float = 0.0
    validation_seed: int = 0
    sampling: Sampling = "uniform"
    max_image_pixels: int = DEFAULT_LIMITS.max_pixels
    max_image_bytes: int = DEFAULT_LIMITS.max_bytes

    def __post_init__(self) -> None:
        _require_one_of("format", self.format, FORMATS)
        if self.num_workers is not None:
            _require_at_least("num_workers", self.num_workers, 0)
        _require_at_least("shuffle_block", self.shuffle_block, 1)
        _require_between("max_bad_share", self.max_bad_share, 0, 1)
        _require_one_of("sampling", self.sampling, SAMPLINGS)
        if self.multi_label and self.sampling == "balanced":
            raise SViTError("`sampling` is 'balanced', which needs one class for each image; `multi_label` is True.")
        if not 0 <= self.validation_share < 1:
            raise SViTError(f"`validation_share` is {self.validation_share}; it has to be at least 0 and below 1.")
        _require_at_least("max_image_pixels", self.max_image_pixels, 1)
        _require_at_least("max_image_bytes", self.max_image_bytes, 1)

    @property
    def limits(self) -> ImageLimits:
        """The largest image that is decoded."""
        return ImageLimits(self.max_image_pixels, self.max_image_bytes)


@dataclass(frozen=True)
class AugmentationOptions:
    """What happens to a training image; the defaults are those of the official training.

    Args:
        scale: Smallest and largest share of the picture's area that a random crop takes.
        ratio: Smallest and largest ratio of width to height of the crop.
        interpolation: How the crop is resized.
        horizontal_flip: Probability of a mirrored image.
        randaugment: RandAugment as `rand-m9-mstd0.5-inc1` (magnitude 9 with standard deviation 0.5, harder with the
            magnitude; `-n3` for three operations instead of two), or empty for none.
        color_jitter: Strength of changes in brightness, contrast and saturation. Only without RandAugment, which
            changes colours itself; 0 for none.
        random_erasing: Probability that a rectangle is replaced by noise, pixel by pixel.
        num_views: Repeated augmentation: so many differently augmented views of each image, on different ranks; an
            epoch has as many steps and covers one image in `num_views`.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    horizontal_flip: float = 0.5
    randaugment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.25
    num_views: int = 1

    def __post_init__(self) -> None:
        for name, values in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < values[0] <= values[1]:
                raise SViTError(f"`{name}` is {values}; it has to be two numbers above 0, the smaller one first.")
        _require_between("scale[1]", self.scale[1], 0, 1)
        _require_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _require_between("horizontal_flip", self.horizontal_flip, 0, 1)
        if self.randaugment and not RANDAUGMENT.fullmatch(self.randaugment):
            raise SViTError(
                f"`randaugment` is {self.randaugment!r}; it has to be empty or like 'rand-m9-mstd0.5-inc1' or "
                "'rand-m9-n2-mstd0.5-inc1'."
            )
        _require_between("color_jitter", self.color_jitter, 0, 1)
        _require_between("random_erasing", self.random_erasing, 0, 1)
        _require_at_least("num_views", self.num_views, 1)


@dataclass(frozen=True)
class MixingOptions:
    """How the images of a batch are mixed; the defaults are those of the official training.

    Args:
        mixup_alpha: Parameter of the beta distribution of mixup's weight; 0 for no mixup.
        cutmix_alpha: The same of cutmix's area; 0 for no cutmix.
        switch_probability: Share of batches that get cutmix, where both are on.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        _require_at_least("mixup_alpha", self.mixup_alpha, 0)
        _require_at_least("cutmix_alpha", self.cutmix_alpha, 0)
        _require_between("switch_probability", self.switch_probability, 0, 1)

    @property
    def is_on(self) -> bool:
        """Whether a batch changes at all."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SViTError(f"`{name}` is {value!r}; it has to be one of {', '.join(allowed)}.")


def _require_at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise SViTError(f"`{name}` is {value}; it has to be at least {least}.")


def _require_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SViTError(f"`{name}` is {value}; it has to be between {low} and {high}.")
