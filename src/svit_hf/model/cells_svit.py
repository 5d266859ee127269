# SPDX-License-Identifier: Apache-2.0
"""Token grids in cells and back, also where a compiler or an exporter traces sizes as symbols.

Shape letters are those of `super_tokens_svit.py`.
"""

from collections.abc import Sequence

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F


def count_cells(size: Sequence[int], cell_size: Sequence[int]) -> tuple[int, int]:
    """Return `(Gh, Gw)`; the last cells may reach beyond the grid."""
    return (size[0] + cell_size[0] - 1) // cell_size[0], (size[1] + cell_size[1] - 1) // cell_size[1]


def token_grids(size: Sequence[int], num_stages: int) -> list[tuple[int, int]]:
    """Return `(H, W)` of the tokens of every stage, for images of a height and width in pixels."""
    # the stem halves twice and each later stage once, rounded up
    return [(-(-size[0] // 2**halved), -(-size[1] // 2**halved)) for halved in range(2, 2 + num_stages)]


def split_into_cells(hidden_states: torch.Tensor, cell_size: tuple[int, int]) -> torch.Tensor:
    """Bring `(B, C, H, W)` into whole cells, `(B, G, P, C)`, with zeros added on the right and at the bottom."""
    tokens = hidden_states.permute(0, 2, 3, 1)
    batch_size, height, width, channels = tokens.shape
    rows, columns = count_cells((height, width), cell_size)
    if _may_or_may_not_be_whole((height, width), cell_size):
        # as many zeros as any size may need; what is too many is never taken
        tokens = F.pad(tokens, (0, 0, 0, cell_size[1] - 1, 0, cell_size[0] - 1))
        y = _positions(rows, cell_size[0], tokens.device).view(rows, 1, cell_size[0], 1)
        x = _positions(columns, cell_size[1], tokens.device).view(1, columns, 1, cell_size[1])
        cells = tokens[:, y, x]  # (B, Gh, Gw, h, w, C)
    else:
        missing = rows * cell_size[0] - height, columns * cell_size[1] - width
        if any(missing):
            tokens = F.pad(tokens, (0, 0, 0, missing[1], 0, missing[0]))
        cells = tokens.reshape(batch_size, rows, cell_size[0], columns, cell_size[1], channels).transpose(2, 3)
    return cells.reshape(batch_size, rows * columns, cell_size[0] * cell_size[1], channels)


def join_cells(tokens: torch.Tensor, cell_size: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """Undo `split_into_cells`: `(B, G, P, C)` to `(B, C, H, W)`."""
    batch_size, _, _, channels = tokens.shape
    rows, columns = count_cells(size, cell_size)
    cells = tokens.reshape(batch_size, rows, columns, *cell_size, channels)
    if _may_or_may_not_be_whole(size, cell_size):
        y = torch.arange(size[0], device=tokens.device).unsqueeze(1)
        x = torch.arange(size[1], device=tokens.device)
        joined = cells[:, y // cell_size[0], x // cell_size[1], y % cell_size[0], x % cell_size[1]]
    else:
        joined = cells.transpose(2, 3).reshape(batch_size, rows * cell_size[0], columns * cell_size[1], channels)
        joined = joined[:, : size[0], : size[1]]
    return joined.permute(0, 3, 1, 2)


def _may_or_may_not_be_whole(size: Sequence[int], cell_size: tuple[int, int]) -> bool:
    """Whether a symbolic size is traced, which may or may not be a multiple of the cell.

    Padding by what is missing, cutting and reshaping then ask questions about that size, and the graph would hold for
    one answer only. Indexing asks none.
    """
    return torch.compiler.is_compiling() and not all(
        statically_known_true(length % cell == 0) or statically_known_true(length % cell != 0)
        for length, cell in zip(size, cell_size, strict=True)
    )


def _positions(num_cells: int, cell: int, device: torch.device) -> torch.Tensor:
    """Return where the tokens of each cell are along one axis, `(num_cells, cell)`."""
    return torch.arange(num_cells, device=device).unsqueeze(1) * cell + torch.arange(cell, device=device)
