# SPDX-License-Identifier: Apache-2.0
"""What happens to a training image, as a pure function of its `SampleKey`.

The crop and the flip need Pillow alone, everything else torchvision.

Source: the order and the defaults are those of `create_transform` in timm, which the official training calls
(`build_transform` in `visualization/datasets.py` of hhb072/STViT@c9ed9a4): with RandAugment there is no colour jitter,
and erased pixels are noise in the normalised image.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image

from svit_hf.data.options import AugmentationOptions
from svit_hf.data.seeding import seeded_by
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
        SViTError: If `options` need torchvision, and it is not installed.
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
            require_torchvision("randaugment", options.randaugment, "")
            from svit_hf.data.randaugment import RandAugment

            fill = tuple(min(255, round(255 * value)) for value in mean)
            self.recolor = RandAugment(options.randaugment, fill, options.interpolation)
        elif options.color_jitter:
            require_torchvision("color_jitter", options.color_jitter, 0)
            from torchvision.transforms import v2

            self.recolor = v2.ColorJitter(*[options.color_jitter] * 3)
        if options.random_erasing:
            require_torchvision("random_erasing", options.random_erasing, 0)
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


def require_torchvision(argument: str, value: object, without: object) -> None:
    """Refuse to go on without torchvision.

    Raises:
        SViTError: If it is not installed; the message says how to do without it.
    """
    if find_spec("torchvision") is None:
        raise SViTError(
            f"`{argument}` is {value!r}, which needs torchvision; install the build that belongs to torch (the extra "
            f"`svit-hf[vision]`), or set it to {without!r}."
        )


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


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _unchanged(value: Any) -> Any:
    return value
