# SPDX-License-Identifier: Apache-2.0
"""What happens to a training image, as a pure function of its `SampleKey`, and to a batch: mixup and cutmix.

The crop and the flip need Pillow alone, RandAugment timm, everything else torchvision.

Source: the order and the defaults are those of `create_transform` in timm, which the official training calls
(`build_transform` in `visualization/datasets.py` of hhb072/STViT@c9ed9a4): with RandAugment there is no colour jitter,
and erased pixels are noise in the normalised image.
"""

import math
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.data.sharding import SampleKey
from svit_hf.errors import SViTError


CROP_ATTEMPTS = 10
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
ERASED_SHARE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


class TrainingTransform:
    """Random crop, flip and change of colours that make a training tensor of a picture.

    Args:
        size: Height and width of the result, in pixels.
        mean: Mean of each channel, of values within 0 and 1.
        std: Standard deviation of each channel.
        options: What to do.

    Raises:
        SViTError: If `options` need torchvision or timm, and it is not installed.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        options: AugmentationOptions,
    ):
        self.size = size
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]
        self.options = options
        self.recolor: Callable[[Image.Image], Image.Image] = _unchanged
        self.erase: Callable[[torch.Tensor], torch.Tensor] = _unchanged
        if options.randaugment:
            _require("timm", "randaugment", options.randaugment, "")
            from timm.data.auto_augment import rand_augment_transform

            fill = tuple(min(255, round(255 * value)) for value in mean)
            settings = {"img_mean": fill, "interpolation": RESAMPLING[options.interpolation]}
            self.recolor = rand_augment_transform(options.randaugment, settings)
        elif options.color_jitter:
            _require("torchvision", "color_jitter", options.color_jitter, 0)
            from torchvision.transforms import v2

            self.recolor = v2.ColorJitter(*[options.color_jitter] * 3)
        if options.random_erasing:
            _require("torchvision", "random_erasing", options.random_erasing, 0)
            from torchvision.transforms import v2

            self.erase = v2.RandomErasing(
                options.random_erasing, ERASED_SHARE, ERASED_RATIO, value="random", inplace=True
            )

    def __call__(self, image: Image.Image, sample: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32."""
        with seeded_by(*sample):
            image = random_crop(image, self.size, self.options)
            if torch.rand(()) < self.options.horizontal_flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = self.recolor(image)
            # contiguous: what follows, and stacking images to a batch, is twice as fast so
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
            return self.erase(pixels.sub_(self.mean).div_(self.std))


def random_crop(image: Image.Image, size: tuple[int, int], options: AugmentationOptions) -> Image.Image:
    """Resize a random part of a picture to `size`.

    The part has a share of the area within `scale` and, of ratios within `ratio`, one that is uniform in its
    logarithm. If after ten attempts none fits into the picture, the largest part from the centre is taken that has a
    ratio within the bounds.
    """
    width, height = image.size
    log_ratio = [math.log(value) for value in options.ratio]
    for _ in range(CROP_ATTEMPTS):
        area = width * height * _uniform(*options.scale)
        ratio = math.exp(_uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(torch.randint(width - w + 1, ())), int(torch.randint(height - h + 1, ()))
            break
    else:
        w = max(1, min(width, round(height * options.ratio[1])))
        h = max(1, min(height, round(width / options.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
    # cropped first: with `box`, resizing would look at pixels beyond the crop
    return image.crop((left, top, left + w, top + h)).resize((size[1], size[0]), RESAMPLING[options.interpolation])


def mix_batch(
    pixel_values: torch.Tensor, labels: torch.Tensor, options: MixingOptions, num_classes: int, seed: int, update: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the images of a batch in pairs.

    All randomness follows from `seed` and `update`: ranks that shall not mix alike give different seeds.

    Args:
        pixel_values: `(B, 3, H, W)`, on any device.
        labels: Numbers of the classes, `(B,)`, int64, or targets `(B, num_classes)`, float32.
        options: How to mix.
        num_classes: Number of classes.
        seed: Seed of the run and the rank.
        update: Number of the update.

    Returns:
        Mixed images, a new tensor unless mixing is off, and targets `(B, num_classes)`, float32, whose rows sum to 1
        if each image has one class.

    Raises:
        SViTError: If there is something to mix, and torchvision is not installed.

    Source: mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) by torchvision. Differs from timm's `Mixup`, which
    the official training uses, in: an image is mixed with the one before it instead of the one at the mirrored place,
    and label smoothing is left to the loss.
    """
    if not options.is_on:
        return pixel_values, labels if labels.ndim == 2 else F.one_hot(labels, num_classes).float()
    _require("torchvision", "mixup_alpha", options.mixup_alpha, 0)
    from torchvision.transforms import v2

    with seeded_by(seed, update):
        prefers_cutmix = bool(torch.rand(()) < options.switch_probability)
        if options.cutmix_alpha and (prefers_cutmix or not options.mixup_alpha):
            mix = v2.CutMix(alpha=options.cutmix_alpha, num_classes=num_classes)
        else:
            mix = v2.MixUp(alpha=options.mixup_alpha, num_classes=num_classes)
        mixed: tuple[torch.Tensor, torch.Tensor] = mix(pixel_values, labels)
    return mixed


@contextmanager
def seeded_by(*numbers: int) -> Iterator[None]:
    """Make random numbers on the CPU follow from `numbers`, and put the generators back afterwards.

    They are torch's, from which torchvision draws, and those of Python and numpy, from which timm does.
    """
    generator = torch.default_generator
    states = generator.get_state(), random.getstate(), np.random.get_state()
    digest = blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    seed = int.from_bytes(digest, "little")
    # not torch.manual_seed: it also seeds accelerators, and takes a stack trace to remember that
    generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _require(package: str, argument: str, value: object, without: object) -> None:
    if find_spec(package) is None:
        raise SViTError(
            f"`{argument}` is {value!r}, which needs {package}; install it, and the torchvision that belongs to torch "
            f"(the extra `svit-hf[vision]`), or set it to {without!r}."
        )


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _unchanged(value: Any) -> Any:
    return value
