# SPDX-License-Identifier: Apache-2.0
"""Drawings of a recorded picture, each an RGB picture in the proportions of what the model saw.

In all of them `stage` and `layer` count from 1, and from the end if they are negative; a `point` is `(x, y)` as shares
of width and height; `edge` is the longer edge of the drawing in pixels.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch.nn import functional as F

from svit_hf.visualization.looking import Through, super_token_at, where_a_pixel_looks
from svit_hf.visualization.options import EDGE
from svit_hf.visualization.recording import LayerRecording, Recording
from svit_hf.visualization.super_tokens import (
    assign_places,
    draw_boundaries,
    fill_with_mean_colours,
    memberships,
)


# from nothing to all, evenly spaced: as light as they are much, so that a grey print says the same
HEAT = ((13, 8, 60), (92, 18, 110), (176, 42, 91), (234, 96, 38), (252, 176, 52), (255, 250, 190))
# how much of the picture stays visible where there is no heat, and where there is all of it
LEAST_HEAT, MOST_HEAT = 0.35, 0.88


def draw_view(recording: Recording, point: tuple[float, float] | None = None, edge: int = EDGE) -> Image.Image:
    """Draw the picture as the model saw it, with a ring around a point if there is one."""
    view = recording.view
    scale = edge / max(view.size)
    size = (max(1, round(view.width * scale)), max(1, round(view.height * scale)))
    enlarged = view.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return enlarged if point is None else _mark(enlarged, point)


def draw_super_tokens(recording: Recording, stage: int, layer: int, edge: int = EDGE) -> Image.Image:
    """Draw the boundaries of a layer's super tokens, each place going to the one that has most of it.

    Raises:
        ValueError: If there is no such layer, or it has no super tokens.
    """
    view = draw_view(recording, edge=edge)
    return draw_boundaries(view, _assignment(recording.layer(stage, layer), view), width=max(1, edge // 280))


def draw_mean_colours(recording: Recording, stage: int, layer: int, edge: int = EDGE) -> Image.Image:
    """Paint each super token of a layer in the mean colour of its pixels.

    Raises:
        ValueError: If there is no such layer, or it has no super tokens.
    """
    view = draw_view(recording, edge=edge)
    return fill_with_mean_colours(view, _assignment(recording.layer(stage, layer), view))


def draw_super_token_at(
    recording: Recording, point: tuple[float, float], stage: int, layer: int, edge: int = EDGE
) -> Image.Image:
    """Light up how much of each place belongs to the super token that a point belongs to most.

    Raises:
        ValueError: If there is no such point or layer, or it has no super tokens.
    """
    recorded = recording.layer(stage, layer)
    association = _association(recorded)
    number = super_token_at(recorded, point)
    share = memberships(association, recorded.cell_size, recorded.grid, range(number, number + 1))[0]
    return _mark(lay_heat_over(draw_view(recording, edge=edge), share), point)


def draw_where_a_pixel_looks(
    recording: Recording,
    point: tuple[float, float],
    stage: int,
    layer: int,
    through: Through = "super_tokens",
    edge: int = EDGE,
) -> Image.Image:
    """Light up where a point looks in a layer; the arguments are those of `where_a_pixel_looks`.

    Raises:
        ValueError: If there is no such point or layer.
    """
    heat = where_a_pixel_looks(recording, point, stage, layer, through)
    return _mark(lay_heat_over(draw_view(recording, edge=edge), heat), point)


def draw_reliance(recording: Recording, edge: int = EDGE) -> Image.Image:
    """Light up what speaks for the recording's target.

    Raises:
        ValueError: If `record` was not asked for it.
    """
    if recording.reliance is None:
        raise ValueError("`recording` has no `reliance`; `record(..., reliance=True)` makes one.")
    return lay_heat_over(draw_view(recording, edge=edge), recording.reliance)


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


def _association(recorded: LayerRecording) -> torch.Tensor:
    if recorded.association is None:
        raise ValueError(
            f"stage {recorded.stage}, layer {recorded.layer} has no super tokens: its cell is 1, and all tokens "
            "attend to each other."
        )
    return recorded.association


def _assignment(recorded: LayerRecording, view: Image.Image) -> torch.Tensor:
    return assign_places(_association(recorded), recorded.cell_size, recorded.grid, (view.height, view.width))


def _mark(picture: Image.Image, point: tuple[float, float]) -> Image.Image:
    """Draw a ring, white in a dark one so that it can be seen on anything."""
    draw = ImageDraw.Draw(picture)
    centre = (point[0] * (picture.width - 1), point[1] * (picture.height - 1))
    radius = max(4, max(picture.size) // 48)
    draw.circle(centre, radius + 1, outline="#101418", width=4)
    draw.circle(centre, radius, outline="#ffffff", width=2)
    return picture
