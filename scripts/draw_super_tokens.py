#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/figures/super_tokens.png: cells of a photograph, and the super tokens that sampling makes of them.

No trained network is involved. The tokens are the pixels, described by their colour and position alone, so that the
figure shows what the sampling does and nothing that a model has learned.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from svit_hf.model.super_tokens_svit import sample_super_tokens_masked
from svit_hf.visualization.super_tokens import assign_tokens, draw_boundaries, fill_with_mean_colours


FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "super_tokens.png"
CELL = 16
# of the picture, in pixels; whole cells
WIDTH, HEIGHT = 384, 256
GAP = 8
# the higher the weight of the position, the rounder the super tokens
COLOUR_WEIGHT, POSITION_WEIGHT = 40.0, 200.0


def describe_pixels(picture: Image.Image) -> torch.Tensor:
    """Return tokens of shape `(1, 10, HEIGHT, WIDTH)` whose dot products fall with the distance of two pixels.

    Each colour channel and coordinate becomes a point on a circle: the dot product of two is the cosine of the angle
    between them, so that a token is most like itself.
    """
    colours = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 * math.pi / 2
    # a cell is 30 degrees wide
    y, x = (torch.arange(length) / CELL * math.pi / 6 for length in (HEIGHT, WIDTH))
    positions = torch.stack(torch.meshgrid(y, x, indexing="ij"))
    angles = torch.cat([colours, positions])
    weights = torch.tensor([COLOUR_WEIGHT] * 3 + [POSITION_WEIGHT] * 2).sqrt().view(-1, 1, 1)
    # sampling divides dot products by the square root of the number of channels
    return torch.cat([weights * angles.cos(), weights * angles.sin()]).unsqueeze(0) * 10**0.25


def draw(photograph: str, num_iterations: int) -> Image.Image:
    """Return three panels: regular cells, super tokens after `num_iterations`, and their mean colours."""
    full = Image.fromarray(load_sample_image(photograph))
    height = full.width * HEIGHT // WIDTH
    top = (full.height - height) // 2
    picture = full.crop((0, top, full.width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)

    association = sample_super_tokens_masked(describe_pixels(picture), (CELL, CELL), num_iterations).association[0]
    super_tokens = assign_tokens(association, (CELL, CELL), (HEIGHT, WIDTH))
    cells = torch.arange(HEIGHT // CELL * (WIDTH // CELL)).view(HEIGHT // CELL, WIDTH // CELL)

    panels = [
        draw_boundaries(picture, cells),
        draw_boundaries(picture, super_tokens),
        fill_with_mean_colours(picture, super_tokens),
    ]
    figure = Image.new("RGB", (len(panels) * (WIDTH + GAP) - GAP, HEIGHT), "white")
    for number, panel in enumerate(panels):
        figure.paste(panel, (number * (WIDTH + GAP), 0))
    return figure


def main() -> None:
    """Draw and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photograph", choices=["china.jpg", "flower.jpg"], default="china.jpg")
    parser.add_argument("--num-iterations", type=int, default=5, help="rounds of association and averaging")
    parser.add_argument("--output", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(arguments.photograph, arguments.num_iterations).quantize(256).save(arguments.output, optimize=True)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
