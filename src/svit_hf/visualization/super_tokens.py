# SPDX-License-Identifier: Apache-2.0
"""Super tokens drawn over the picture they were sampled from: their boundaries, and their mean colours.

An association is soft. For a drawing every token goes to the super token that holds its largest share.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def assign_tokens(association: torch.Tensor, cell_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Give every token the number of the super token that it belongs to most.

    Shares in cells outside of the grid, which the zero-padded neighbourhood of the published models has, do not count.

    Args:
        association: Of one image, shape `(G, P, 9)`: one batch entry of `SuperTokens.association`, or of one of a
            model's `associations`.
        cell_size: `(h, w)` of a cell, in tokens.
        size: `(H, W)` of the token grid, in tokens.

    Returns:
        Shape `(H, W)`, int64: row-major numbers of super tokens, from 0 to `G - 1`.

    Raises:
        ValueError: If the shape of `association` is not the one of such a grid.
    """
    rows, columns = (-(-length // cell) for length, cell in zip(size, cell_size, strict=True))
    expected = (rows * columns, cell_size[0] * cell_size[1], 9)
    if tuple(association.shape) != expected:
        raise ValueError(
            f"`association` has the shape {tuple(association.shape)}; a grid of {size} tokens in cells of {cell_size} "
            f"has {expected}, (cells, tokens of a cell, neighbours), for one image."
        )
    offset = torch.arange(9, device=association.device)
    cell = torch.arange(rows * columns, device=association.device).unsqueeze(1)
    row, column = cell // columns + offset // 3 - 1, cell % columns + offset % 3 - 1  # (G, 9) each
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    shares = association.masked_fill(~inside.unsqueeze(1), -1.0)  # (G, P, 9)
    assigned = (row * columns + column).gather(1, shares.argmax(dim=-1))  # (G, P)
    grid = assigned.view(rows, columns, *cell_size).transpose(1, 2)  # (Gh, h, Gw, w)
    return grid.reshape(rows * cell_size[0], columns * cell_size[1])[: size[0], : size[1]]


def draw_boundaries(
    image: Image.Image, assignment: torch.Tensor, colour: tuple[int, int, int] = (255, 230, 0), width: int = 1
) -> Image.Image:
    """Draw the boundaries of super tokens over an image.

    Args:
        image: Any size and mode; the token grid is stretched over it.
        assignment: Super token of each token, shape `(H, W)`, see `assign_tokens`.
        colour: Red, green and blue of the lines, 0 to 255.
        width: Of the lines, in pixels.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If `assignment` is no grid.
    """
    pixels, labels = _pixels_and_labels(image, assignment)
    edge = np.zeros(labels.shape, dtype=bool)
    # a pixel is on a boundary if one at most `width` pixels to the right or below belongs to another super token
    for step in range(1, width + 1):
        edge[:, :-step] |= labels[:, :-step] != labels[:, step:]
        edge[:-step] |= labels[:-step] != labels[step:]
    pixels[edge] = colour
    return Image.fromarray(pixels)


def fill_with_mean_colours(image: Image.Image, assignment: torch.Tensor) -> Image.Image:
    """Paint every super token with the mean colour of the pixels that belong to it.

    Args:
        image: Any size and mode; the token grid is stretched over it.
        assignment: Super token of each token, shape `(H, W)`, see `assign_tokens`.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If `assignment` is no grid.
    """
    pixels, labels = _pixels_and_labels(image, assignment)
    counts = np.bincount(labels.ravel())
    sums = np.stack([np.bincount(labels.ravel(), weights=channel.ravel()) for channel in pixels.transpose(2, 0, 1)], 1)
    # a super token without pixels is not looked up
    means = sums / np.maximum(counts, 1)[:, None]
    return Image.fromarray(means.round().astype(np.uint8)[labels])


def _pixels_and_labels(image: Image.Image, assignment: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels, `(height, width, 3)`, and the super token of each, `(height, width)`."""
    if assignment.ndim != 2:
        raise ValueError(f"`assignment` has the shape {tuple(assignment.shape)}; it has to be a grid, (H, W).")
    pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    grid = assignment.cpu().numpy()
    y = np.arange(height) * grid.shape[0] // height
    x = np.arange(width) * grid.shape[1] // width
    return pixels, grid[np.ix_(y, x)]
