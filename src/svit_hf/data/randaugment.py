# SPDX-License-Identifier: Apache-2.0
"""RandAugment as the official training uses it, on the functions of torchvision.

`torchvision.transforms.v2.RandAugment` itself has other operations, one magnitude for all of them, and applies each
with certainty.

Source: RandAugment (Cubuk et al., 2019) in the form of `rand_augment_transform` in `timm/data/auto_augment.py`,
huggingface/pytorch-image-models@066e490, with `inc1`. Differs from it in: which generator draws the numbers, and that
posterizing leaves one bit where it is strongest, where that code leaves none and Pillow refuses.
"""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from svit_hf.data.options import RANDAUGMENT


# magnitudes are stated as parts of it
MAX_MAGNITUDE = 10
DEFAULT_NUM_OPS = 2
# each operation that was chosen is left out as often as it is applied
PROBABILITY = 0.5

MAX_ROTATION_DEGREES = 30
MAX_SHEAR = 0.3
MAX_TRANSLATION = 0.45
MAX_ENHANCEMENT = 0.9
MIN_ENHANCEMENT_FACTOR = 0.1
MAX_POSTERIZED_BITS = 4
MAX_ADDITION = 110
MIDDLE_GREY = 128


class RandAugment:
    """A few random operations of random strength on a picture.

    Args:
        policy: See `AugmentationOptions.randaugment`.
        fill: Colour of what a geometric operation moves in, `(red, green, blue)` within 0 and 255.
        interpolation: How geometric operations resample.
    """

    def __init__(self, policy: str, fill: tuple[int, ...], interpolation: str):
        match = RANDAUGMENT.fullmatch(policy)
        assert match is not None
        self.magnitude = float(match["magnitude"])
        self.std = float(match["std"] or 0)
        self.num_ops = int(match["num_ops"] or DEFAULT_NUM_OPS)
        self.fill = list(map(float, fill))
        self.interpolation = tvF.InterpolationMode(interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a picture of the same size; random numbers come from torch's generator."""
        for _ in range(self.num_ops):
            name = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
            if torch.rand(()) >= PROBABILITY:
                continue
            magnitude = self.magnitude + self.std * float(torch.randn(()))
            image = self.apply(name, image, min(max(magnitude, 0), MAX_MAGNITUDE) / MAX_MAGNITUDE)
        return image

    def apply(self, name: str, image: Image.Image, level: float) -> Image.Image:
        """Apply an operation.

        Args:
            name: One of `OPERATIONS`.
            image: The picture, RGB.
            level: How strongly, from 0 to 1; the sign is drawn where both signs make sense.
        """
        if name in ADJUSTMENTS:
            factor = max(MIN_ENHANCEMENT_FACTOR, 1 + _signed(MAX_ENHANCEMENT * level))
            return ADJUSTMENTS[name](image, factor)
        if name == "rotate":
            angle = _signed(MAX_ROTATION_DEGREES * level)
            return tvF.rotate(image, angle, interpolation=self.interpolation, fill=self.fill)
        if name in ("shear_x", "shear_y"):
            degrees = math.degrees(math.atan(_signed(MAX_SHEAR * level)))
            # from the corner, not the centre
            return self._move(image, shear=_on_axis(name, degrees), center=[0, 0])
        if name in ("translate_x", "translate_y"):
            edge = image.width if name == "translate_x" else image.height
            return self._move(image, translate=_on_axis(name, _signed(MAX_TRANSLATION * level) * edge))
        return FIXED[name](image, level)

    def _move(
        self,
        image: Image.Image,
        translate: tuple[float, float] = (0, 0),
        shear: tuple[float, float] = (0, 0),
        center: list[float] | None = None,
    ) -> Image.Image:
        return tvF.affine(
            image,
            angle=0,
            translate=list(translate),
            scale=1,
            shear=list(shear),
            interpolation=self.interpolation,
            fill=self.fill,
            center=center,
        )


def _signed(value: float) -> float:
    return -value if torch.rand(()) < PROBABILITY else value


def _on_axis(name: str, value: float) -> tuple[float, float]:
    return (value, 0) if name.endswith("x") else (0, value)


def _posterize(image: Image.Image, level: float) -> Image.Image:
    return tvF.posterize(image, max(1, MAX_POSTERIZED_BITS - int(level * MAX_POSTERIZED_BITS)))


def _solarize(image: Image.Image, level: float) -> Image.Image:
    return tvF.solarize(image, 256 - int(level * 256))


def _solarize_add(image: Image.Image, level: float) -> Image.Image:
    addition = int(level * MAX_ADDITION)
    table = [min(255, value + addition) if value < MIDDLE_GREY else value for value in range(256)]
    return image.point(table * len(image.getbands()))


# factor 1 changes nothing
ADJUSTMENTS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": tvF.adjust_brightness,
    "color": tvF.adjust_saturation,
    "contrast": tvF.adjust_contrast,
    "sharpness": tvF.adjust_sharpness,
}
FIXED: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda image, level: tvF.autocontrast(image),
    "equalize": lambda image, level: tvF.equalize(image),
    "invert": lambda image, level: tvF.invert(image),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
}
OPERATIONS = (*ADJUSTMENTS, *FIXED, "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
