# SPDX-License-Identifier: Apache-2.0
"""Super tokens over a picture: how much of each place belongs to which, boundaries, mean colours.

An association is soft. For boundaries and colours every place goes to the super token that holds its largest share.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F


LINE = (255, 214, 10)
# super tokens whose maps are enlarged at a time: a map is as large as the picture
MAPS_AT_A_TIME = 32


def memberships(
    association: torch.Tensor, cell_size: tuple[int, int], grid: tuple[int, int], super_tokens: range | None = None
) -> torch.Tensor:
    """Return which share of every token belongs to each super token.

    Shares in cells outside of the grid, which the zero-padded neighbourhood of the published models has, belong to
    none; the rest of what a token has sums to less than 1 along the border.

    Args:
        association: Of one picture, shape `(G, P, 9)`: one batch entry of `SuperTokens.association`, or of one of a
            model's `associations`.
        cell_size: `(h, w)` of a cell, in tokens.
        grid: `(H, W)` of the tokens.
        super_tokens: Row-major numbers of those to return; all if `None`.

    Returns:
        Shape `(len(super_tokens), H, W)`.

    Raises:
        ValueError: If the shape of `association` is not the one of such a grid.
    """
    rows, columns = (-(-length // cell) for length, cell in zip(grid, cell_size, strict=True))
    expected = (rows * columns, cell_size[0] * cell_size[1], 9)
    if tuple(association.shape) != expected:
        raise ValueError(
            f"`association` has the shape {tuple(association.shape)}; a grid of {grid} tokens in cells of {cell_size} "
            f"has {expected}, (cells, tokens of a cell, neighbours), for one image."
        )
    owner = torch.tensor(range(rows * columns) if super_tokens is None else super_tokens)
    place = torch.arange(len(owner))
    shares = association.new_zeros(len(owner), *expected[:2])
    for k in range(9):
        # neighbour k of a cell is this super token if the cell lies on the other side of it
        row, column = owner // columns - (k // 3 - 1), owner % columns - (k % 3 - 1)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        cell = (row * columns + column)[inside]
        shares[place[inside], cell] = association[cell, :, k]
    maps = shares.view(-1, rows, columns, *cell_size).transpose(2, 3)  # (S, Gh, h, Gw, w)
    return maps.reshape(-1, rows * cell_size[0], columns * cell_size[1])[:, : grid[0], : grid[1]]


def assign_places(
    association: torch.Tensor,
    cell_size: tuple[int, int],
    grid: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Give every place of a picture the number of the super token that it belongs to most.

    Args:
        association: Shape `(G, P, 9)`, see `memberships`.
        cell_size: `(h, w)` of a cell, in tokens.
        grid: `(H, W)` of the tokens.
        size: `(height, width)` of the result; shares between tokens are interpolated. One place per token if `None`.

    Returns:
        Shape `size`, int64: row-major numbers of super tokens, from 0 to `G - 1`.

    Raises:
        ValueError: If the shape of `association` is not the one of such a grid.
    """
    best = torch.full(size or grid, -1.0)
    assigned = torch.zeros(size or grid, dtype=torch.int64)
    for start in range(0, len(association), MAPS_AT_A_TIME):
        chosen = range(start, min(start + MAPS_AT_A_TIME, len(association)))
        maps = memberships(association, cell_size, grid, chosen)
        if size is not None and size != grid:
            maps = F.interpolate(maps.unsqueeze(0), size, mode="bilinear", align_corners=False)[0]
        share, number = maps.max(dim=0)
        is_better = share > best
        best, assigned = torch.where(is_better, share, best), torch.where(is_better, number + start, assigned)
    return assigned


def draw_boundaries(
    picture: Image.Image, assignment: torch.Tensor, colour: tuple[int, int, int] = LINE, width: int = 1
) -> Image.Image:
    """Draw the boundaries of super tokens over a picture.

    Args:
        picture: Any size and mode.
        assignment: Super token of each place, shape `(height, width)`, see `assign_places`; stretched over the picture
            if it is smaller.
        colour: Red, green and blue of the lines, 0 to 255.
        width: Of the lines, in pixels.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: If `assignment` is no grid.
    """
    pixels, labels = _pixels_and_labels(picture, assignment)
    edge = np.zeros(labels.shape, dtype=bool)
    # a pixel is on a boundary if one at most `width` pixels to the right or below belongs to another super token
    for step in range(1, width + 1):
        edge[:, :-step] |= labels[:, :-step] != labels[:, step:]
        edge[:-step] |= labels[:-step] != labels[step:]
    pixels[edge] = colour
    return Image.fromarray(pixels)


def fill_with_mean_colours(picture: Image.Image, assignment: torch.Tensor) -> Image.Image:
    """Paint every super token with the mean colour of the pixels that belong to it.

    Args:
        picture: Any size and mode.
        assignment: Super token of each place, shape `(height, width)`, see `draw_boundaries`.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: If `assignment` is no grid.
    """
    pixels, labels = _pixels_and_labels(picture, assignment)
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
