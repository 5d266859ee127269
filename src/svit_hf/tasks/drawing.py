# SPDX-License-Identifier: Apache-2.0
"""Predictions drawn on pictures, with Pillow alone."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


OPACITY = 0.5
# neighbouring numbers get hues far apart
GOLDEN_RATIO = 0.618033988749895


def color(number: int) -> tuple[int, int, int]:
    """Return the colour of a class or an instance."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(picture: Image.Image, mask: np.ndarray, fill: tuple[int, int, int]) -> Image.Image:
    """Tint the pixels of a picture where `mask`, bool `(H, W)`, is true."""
    opacity = Image.fromarray(np.where(mask, round(255 * OPACITY), 0).astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, fill), picture.convert("RGB"), opacity)


def box(picture: Image.Image, corners: Sequence[float], text: str, outline: tuple[int, int, int]) -> None:
    """Draw a box of x1, y1, x2, y2, with a word in it, into a picture."""
    draw = ImageDraw.Draw(picture)
    width = max(1, min(picture.size) // 200)
    draw.rectangle([round(value) for value in corners], outline=outline, width=width)
    font = ImageFont.load_default(max(9, min(picture.size) // 40))
    place = (round(corners[0]) + 2, round(corners[1]))
    draw.rectangle(draw.textbbox(place, text, font=font), fill=outline)
    draw.text(place, text, fill="black", font=font)
