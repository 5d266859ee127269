# SPDX-License-Identifier: Apache-2.0
"""The official evaluation transform, written with Pillow and NumPy alone; how near the image processors come to it."""

import numpy as np
from PIL import Image

from svit_hf import SViTImageProcessor, SViTImageProcessorPil


MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

# one of 256 levels of brightness, where the standard deviation is smallest
LEVEL = 1 / 255 / 0.224
# Pillow backend: the same bits. torchvision backend: its resampling rounds otherwise; worst case measured: 2 levels on
# the picture with the most extreme proportions at size 256, and 1 on all others
TOLERANCE = {SViTImageProcessorPil: 1e-6, SViTImageProcessor: 2.01 * LEVEL}
# floats are not rounded to levels, the official picture is, twice; worst case measured: 1.07 levels
FLOAT_TOLERANCE = 1.1 * LEVEL


def photo(height=60, width=90):
    """Return RGB pixels with slopes, noise, and hard edges, where bicubic weights overshoot."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([127 + 120 * np.sin(x / 17 + y / 29 + channel) for channel in range(3)], axis=-1)
    pixels[::7] = 255
    pixels[:, ::11] = 0
    noise = np.random.default_rng(0).normal(0, 10, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def official_transform(image, size=224):
    """Resize an RGB Pillow image by its shortest edge, crop the centre, scale to 0..1 and normalise: `(3, S, S)`."""
    edge = int(256 / 224 * size) if size <= 224 else size
    width, height = image.size
    if width < height:
        width, height = edge, int(edge * height / width)
    else:
        width, height = int(edge * width / height), edge
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return ((np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def pixel_values(processor, images, **kwargs):
    """Return what `processor` makes of `images`, `(B, C, height, width)`."""
    return processor(images, return_tensors="pt", **kwargs).pixel_values.numpy()


def assert_close(actual, expected, tolerance):
    """Compare shape, type and values; `tolerance` is the largest difference allowed."""
    assert (actual.shape, actual.dtype) == (expected.shape, np.float32), f"{actual.dtype} of {actual.shape}"
    difference = np.abs(actual - expected).max()
    assert difference <= tolerance, f"{difference} > {tolerance}"
