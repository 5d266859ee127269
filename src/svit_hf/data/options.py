# SPDX-License-Identifier: Apache-2.0
"""What can be said about data on a command line or in a recipe; checked when it is said."""

import re
from dataclasses import dataclass
from typing import Literal

from svit_hf.data.decoding import DEFAULT_LIMITS, ImageLimits
from svit_hf.errors import SViTError
from svit_hf.option_fields import check_options, option, require


DataFormat = Literal["auto", "hub", "parquet", "webdataset", "imagefolder"]
Interpolation = Literal["bicubic", "bilinear"]
Sampling = Literal["uniform", "balanced"]

# what timm's own parser takes, of which a part that it does not know changes nothing
RANDAUGMENT = re.compile(r"rand-m\d+(\.\d+)?(-n\d+)?(-mstd\d+(\.\d+)?)?-inc1")


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
    shuffle_block: int = option(1024, at_least=1)
    max_bad_share: float = option(0.001, at_least=0, at_most=1, changes_freely=True)
    index: str | None = option(None, changes_freely=True)
    validation_share: float = option(0.0, at_least=0, below=1)
    validation_seed: int = 0
    sampling: Sampling = "uniform"
    max_image_pixels: int = option(DEFAULT_LIMITS.max_pixels, at_least=1)
    max_image_bytes: int = option(DEFAULT_LIMITS.max_bytes, at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.multi_label and self.sampling == "balanced":
            raise SViTError("`sampling` is 'balanced', which needs one class for each image; `multi_label` is True.")

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
        color_jitter: Strength of changes in brightness, contrast and saturation (in segmentation and detection: of
            brightness and contrast, by channel). Only without RandAugment, which changes colours itself; 0 for none.
        random_erasing: Probability that a rectangle is replaced by noise, pixel by pixel.
        num_views: Repeated augmentation: so many differently augmented views of each image, on different ranks; an
            epoch has as many steps and covers one image in `num_views`.
    """

    scale: tuple[float, float] = option((0.08, 1.0), above=0, at_most=1)
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), above=0)
    interpolation: Interpolation = "bicubic"
    horizontal_flip: float = option(0.5, at_least=0, at_most=1)
    randaugment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = option(0.4, at_least=0, at_most=1)
    random_erasing: float = option(0.25, at_least=0, at_most=1)
    num_views: int = option(1, at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
        for name, values in (("scale", self.scale), ("ratio", self.ratio)):
            require(values[0] <= values[1], name, values, "two numbers, the smaller one first")
        is_known = not self.randaugment or RANDAUGMENT.fullmatch(self.randaugment) is not None
        allowed = "empty or like 'rand-m9-mstd0.5-inc1' or 'rand-m9-n2-mstd0.5-inc1'"
        require(is_known, "randaugment", self.randaugment, allowed)


@dataclass(frozen=True)
class MixingOptions:
    """How the images of a batch are mixed; the defaults are those of the official training.

    Args:
        mixup_alpha: Parameter of the beta distribution of mixup's weight; 0 for no mixup.
        cutmix_alpha: The same of cutmix's area; 0 for no cutmix.
        switch_probability: Share of batches that get cutmix, where both are on.
    """

    mixup_alpha: float = option(0.8, at_least=0)
    cutmix_alpha: float = option(1.0, at_least=0)
    switch_probability: float = option(0.5, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def is_on(self) -> bool:
        """Whether a batch changes at all."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclass(frozen=True)
class ShardOptions:
    """What shards look like.

    Args:
        rows_per_shard: Images in a file; by default `megabytes` decides.
        megabytes: Size, in MB of encoded images, from which on a file is closed.
        row_group_size: Images in a row group. A stream opens these one by one, so there should be several for each
            worker of each rank.
        seed: Fixes the order in which images are written.
        shuffle_block: Images of a streamed source that are permuted together, and held in memory.
    """

    rows_per_shard: int | None = option(None, at_least=1)
    megabytes: float = option(256, above=0)
    row_group_size: int = option(256, at_least=1)
    seed: int = 0
    shuffle_block: int = option(8192, at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
