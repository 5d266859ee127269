# SPDX-License-Identifier: Apache-2.0
"""Where a place of a picture looks: one row of what a layer's attention does among tokens.

A layer with super tokens computes `Q softmax(q k^T) Q'` of its tokens' values, a matrix of all tokens by all tokens:
`Q` says how much of a token belongs to each super token, and `Q'`, its transpose with rows that sum to 1, how much of
a super token comes from each token. A row of it says where a token looks. No such matrix is made.
"""

from typing import Literal

import torch

from svit_hf.model.super_tokens_svit import upsample_tokens
from svit_hf.visualization.recording import LayerRecording, Recording


Through = Literal["super_tokens", "all_tokens", "window"]


def where_a_pixel_looks(
    recording: Recording,
    point: tuple[float, float],
    stage: int,
    layer: int,
    through: Through = "super_tokens",
    window: int = 7,
) -> torch.Tensor:
    """Return how much a point of a picture takes from every place, in one layer, as the mean over its heads.

    What a layer adds to its tokens by convolution, and what layers before it have mixed, is not in it.

    Args:
        recording: See `record`.
        point: `(x, y)` as shares of width and height of `recording.view`, 0 to 1, from the upper left corner.
        stage: From 1; negative numbers count from the end.
        layer: Of the stage, likewise.
        through: What the layer does (`super_tokens`; where its cell is 1, it attends to all tokens). Or, to compare,
            what the same queries and keys would do without super tokens, for which they were not trained: among
            `all_tokens`, or in the `window` that the token is in.
        window: Edge of such a window, in tokens.

    Returns:
        Shape `(H, W)`, the grid of the stage's tokens. Sums to 1 at most: super tokens outside of the picture, and
        padding, take some along the border.

    Raises:
        ValueError: If there is no such point or layer.
    """
    recorded = recording.layer(stage, layer)
    y, x = token_at(point, recorded.grid)
    if through == "super_tokens":
        return _through_super_tokens(recorded, y, x)
    height, width = recorded.grid
    token = y * width + x
    affinity = (recorded.queries[:, token].unsqueeze(1) @ recorded.keys.transpose(1, 2)).view(-1, height, width)
    if through == "window":
        top, left = y // window * window, x // window * window
        is_outside = torch.ones(height, width, dtype=torch.bool)
        is_outside[top : top + window, left : left + window] = False
        affinity = affinity.masked_fill(is_outside, -torch.inf)
    return affinity.flatten(1).softmax(dim=-1).mean(dim=0).view(height, width)


def token_at(point: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    """Return row and column of the token at a point.

    Args:
        point: `(x, y)` as shares of width and height, 0 to 1.
        grid: `(H, W)` of the tokens.

    Raises:
        ValueError: If the point is outside of the picture.
    """
    if not all(0 <= share <= 1 for share in point):
        raise ValueError(f"`point` is {point}; x and y have to be shares of width and height, from 0 to 1.")
    return min(int(point[1] * grid[0]), grid[0] - 1), min(int(point[0] * grid[1]), grid[1] - 1)


def super_token_at(recorded: LayerRecording, point: tuple[float, float]) -> int:
    """Return the row-major number of the super token that the token at a point belongs to most."""
    y, x = token_at(point, recorded.grid)
    return int(_shares_of_token(recorded, y, x).argmax())


def _through_super_tokens(recorded: LayerRecording, y: int, x: int) -> torch.Tensor:
    attention = recorded.attention.mean(dim=0)  # (G, G)
    if recorded.association is None:
        return attention[y * recorded.grid[1] + x].view(recorded.grid)
    taken = _shares_of_token(recorded, y, x) @ attention  # (G,)
    # the weights of a super token's mean are what belongs to it, divided by their sum
    share = (taken / (_masses(recorded) + 1e-12)).view(1, 1, *recorded.super_token_grid)
    return upsample_tokens(share, recorded.association.unsqueeze(0), recorded.cell_size, recorded.grid)[0, 0]


def _shares_of_token(recorded: LayerRecording, y: int, x: int) -> torch.Tensor:
    """Return how much of a token belongs to each super token, shape `(G,)`."""
    assert recorded.association is not None
    (height, width), (rows, columns) = recorded.cell_size, recorded.super_token_grid
    row, column = y // height, x // width
    own = recorded.association[row * columns + column, y % height * width + x % width].view(3, 3)
    shares = torch.zeros(rows + 2, columns + 2)
    shares[row : row + 3, column : column + 3] = own
    return shares[1:-1, 1:-1].flatten()


def _masses(recorded: LayerRecording) -> torch.Tensor:
    """Return how much belongs to each super token, padding included, shape `(G,)`."""
    assert recorded.association is not None
    rows, columns = recorded.super_token_grid
    of_cells = recorded.association.sum(dim=1).view(rows, columns, 3, 3)
    masses = torch.zeros(rows + 2, columns + 2)
    for y in range(3):
        for x in range(3):
            masses[y : y + rows, x : x + columns] += of_cells[:, :, y, x]
    return masses[1:-1, 1:-1].flatten()
