# SPDX-License-Identifier: Apache-2.0
"""What happens to a training image, as a pure function of its `SampleKey`."""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image

from svit_hf.data.options import AugmentationOptions
from svit_hf.data.sharding import SampleKey


CROP_ATTEMPTS = 10
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class TrainingTransform:
    """Make a training tensor of a picture.

    Args:
        size: Height and width of the result, in pixels.
        mean: Mean of each channel, of values within 0 and 1.
        std: Standard deviation of each channel.
        options: What to do.
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

    def __call__(self, image: Image.Image, sample: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32."""
        with seeded_by(sample):
            image = random_crop(image, self.size, self.options)
            if torch.rand(()) < self.options.horizontal_flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
            return pixels.sub_(self.mean).div_(self.std)


@contextmanager
def seeded_by(sample: SampleKey) -> Iterator[None]:
    """Make torch's random numbers on the CPU a function of the sample, and put the generator back afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    digest = blake2b(struct.pack("<4q", *sample), digest_size=8).digest()
    # not torch.manual_seed: that also seeds accelerators, which takes longer than the augmentation
    generator.manual_seed(int.from_bytes(digest, "little"))
    try:
        yield
    finally:
        generator.set_state(state)


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
        w = min(width, round(height * options.ratio[1]))
        h = min(height, round(width / options.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size[1], size[0]), RESAMPLING[options.interpolation], box=box)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
