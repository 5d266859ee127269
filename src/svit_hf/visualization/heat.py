# SPDX-License-Identifier: Apache-2.0
"""Heat over a picture."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F


# from nothing to all, evenly spaced: as light as they are much, so that a grey print says the same
HEAT = ((13, 8, 60), (92, 18, 110), (176, 42, 91), (234, 96, 38), (252, 176, 52), (255, 250, 190))
# how much of the picture stays visible where there is no heat, and where there is all of it
LEAST_HEAT, MOST_HEAT = 0.35, 0.88


def lay_heat_over(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    """Lay a map of heat over a picture without its colours.

    Args:
        picture: Any size and mode.
        heat: Shape `(H, W)`, at least 0; interpolated over the picture. The largest value gets the lightest colour.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: If `heat` is no grid.
    """
    if heat.ndim != 2:
        raise ValueError(f"`heat` has the shape {tuple(heat.shape)}; it has to be a grid, (H, W).")
    size = picture.height, picture.width
    enlarged = F.interpolate(heat.float()[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
    top = float(heat.max())
    # a map of nothing is all dark
    level = np.clip(enlarged / top, 0, 1) if top > 0 else np.zeros_like(enlarged)
    stops = np.linspace(0, 1, len(HEAT))
    colour = np.stack([np.interp(level, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    grey = np.asarray(ImageOps.grayscale(picture.convert("RGB")), dtype=float)[..., None]
    opacity = (LEAST_HEAT + (MOST_HEAT - LEAST_HEAT) * level)[..., None]
    return Image.fromarray((grey * (1 - opacity) + colour * opacity).round().astype(np.uint8))
