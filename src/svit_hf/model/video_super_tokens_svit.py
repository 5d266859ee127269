# SPDX-License-Identifier: Apache-2.0
"""Super tokens of clips: cells of `t` frames and `h x w` tokens, each token shared among the 27 nearest of them.

Space follows `super_tokens_svit.py`, whose shape letters hold here too: cells outside of the picture are zeros that
take mass away. Cells before the first and after the last frame are left out instead, and the last frame is repeated to
whole cells. So a clip that stands still has in every frame the super tokens of that frame alone, however long it is.

More shape letters: `T` frames of a clip, `t` frames in a cell, `Gt` cells in time; here `P = t*h*w` tokens per cell,
`G = Gt*Gh*Gw` super tokens of a clip and `K = 27` neighbours.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .cells_svit import count_cells
from .super_tokens_svit import SuperTokens, without_autocast


def video_super_token_attention(
    hidden_states: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
    num_frames: int,
    cell_size: tuple[int, int, int],
    num_iterations: int = 1,
) -> tuple[torch.Tensor, SuperTokens]:
    """Let all tokens of a clip attend to each other through super tokens.

    Args:
        hidden_states: Token grids of all frames, clip after clip, shape `(B*T, C, H, W)`.
        attend: Maps the super tokens of a clip, `(B, C, Gt*Gh, Gw)`, to new ones of the same shape.
        num_frames: `T`.
        cell_size: `(t, h, w)`: frames, and tokens along height and width.
        num_iterations: Rounds of association and averaging, at least 1.

    Returns:
        The new tokens, shape `(B*T, C, H, W)`, and the sampled super tokens (before `attend`).

    Source: section 3.2 of arXiv 2211.11167, with time as a third axis.
    """
    sampled = sample_video_super_tokens(hidden_states, num_frames, cell_size, num_iterations)
    super_tokens = sampled.super_tokens.movedim(1, -1)  # (B, Gt, Gh, Gw, C)
    grid_size = super_tokens.shape[1:4]
    # joined in this order, one clip too has the strides by which convolutions and attention know the layout
    attended = attend(super_tokens.flatten(1, 2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, Gt*Gh, Gw, C)
    neighbours = _gather(attended.unflatten(1, grid_size[:2]))  # (B, G, 27, C)
    tokens = sampled.association.to(attended.dtype) @ neighbours  # (B, G, P, C)
    size = num_frames, *hidden_states.shape[-2:]
    return _join_cells(tokens, grid_size, cell_size, size), sampled


def sample_video_super_tokens(
    hidden_states: torch.Tensor, num_frames: int, cell_size: tuple[int, int, int], num_iterations: int = 1
) -> SuperTokens:
    """Group the tokens of clips into super tokens, as `sample_super_tokens` does for pictures.

    The association is a constant for autograd, and computed in float32.

    Args:
        hidden_states: Token grids of all frames, clip after clip, shape `(B*T, C, H, W)`.
        num_frames: `T`.
        cell_size: `(t, h, w)`: frames, and tokens along height and width.
        num_iterations: Rounds of association and averaging, at least 1.

    Returns:
        The super tokens, `(B, C, Gt, Gh, Gw)`, and the association, `(B, G, P, 27)`, with time before rows before
        columns in cells, tokens and neighbours; neighbour 13 is the cell itself.

    Raises:
        ValueError: If `num_iterations` is below 1.
    """
    if num_iterations < 1:
        raise ValueError(f"`num_iterations` is {num_iterations}; it has to be at least 1.")
    tokens, grid_size = _split_into_cells(hidden_states, num_frames, cell_size)  # (B, G, P, C)
    with without_autocast(tokens.device.type):
        # half precision loses the small masses and overflows in the sum over a large cell
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        constant = tokens.detach()
        super_tokens = constant.mean(dim=2).unflatten(1, grid_size)  # (B, Gt, Gh, Gw, C)
        association = _associate(constant, super_tokens)  # (B, G, P, 27)
        for _ in range(num_iterations - 1):
            association = _associate(constant, _weighted_means(association, constant, grid_size))
        super_tokens = _weighted_means(association, tokens, grid_size)
    return SuperTokens(super_tokens.to(hidden_states.dtype).permute(0, 4, 1, 2, 3), association)


def _associate(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    neighbours = _gather(super_tokens * tokens.shape[-1] ** -0.5)  # (B, G, 27, C)
    affinity = tokens @ neighbours.transpose(-2, -1)  # (B, G, P, 27)
    by_time = affinity.unflatten(1, (super_tokens.shape[1], -1))
    by_time[:, 0, ..., :9] = -torch.inf
    by_time[:, -1, ..., 18:] = -torch.inf
    return affinity.softmax(dim=-1)


def _weighted_means(association: torch.Tensor, tokens: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """Average tokens, `(B, G, P, C)`, by association: `(B, Gt, Gh, Gw, C)`."""
    # sums first: dividing the association by the masses would be one more pass over the largest tensor but the tokens
    mass = _sum(association.sum(dim=2).unsqueeze(-1), grid_size)
    return _sum(association.transpose(-2, -1) @ tokens, grid_size) / (mass + 1e-12)


def _gather(grid: torch.Tensor) -> torch.Tensor:
    """Collect the 27 neighbours of every cell, zeros outside: `(B, Gt, Gh, Gw, C)` to `(B, G, 27, C)`."""
    neighbours = F.pad(grid, (0, 0, 1, 1, 1, 1, 1, 1))
    # time last: the largest copies are then of the longest runs of memory
    for axis in (3, 2, 1):
        neighbours = torch.stack([neighbours.narrow(axis, i, grid.shape[axis]) for i in range(3)], dim=4)
    return neighbours.flatten(4, 6).flatten(1, 3)  # from (B, Gt, Gh, Gw, 3, 3, 3, C)


def _sum(partial_sums: torch.Tensor, grid_size: tuple[int, int, int]) -> torch.Tensor:
    """Add what every cell has for its 27 neighbours: `(B, G, 27, C)` to `(B, Gt, Gh, Gw, C)`."""
    sums = partial_sums.unflatten(2, (3, 3, 3)).unflatten(1, grid_size)  # (B, Gt, Gh, Gw, 3, 3, 3, C)
    for axis, length in enumerate(grid_size, 1):
        before, level, after = sums.unbind(4)
        sums = level.clone()
        sums.narrow(axis, 0, length - 1).add_(before.narrow(axis, 1, length - 1))
        sums.narrow(axis, 1, length - 1).add_(after.narrow(axis, 0, length - 1))
    return sums


def _split_into_cells(
    hidden_states: torch.Tensor, num_frames: int, cell_size: tuple[int, int, int]
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Bring `(B*T, C, H, W)` into whole cells, `(B, G, P, C)`: zeros fill up space, the last frame fills up time."""
    tokens = hidden_states.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))  # (B, T, H, W, C)
    batch_size, _, height, width, channels = tokens.shape
    frames, *cell = cell_size
    times = (num_frames + frames - 1) // frames
    rows, columns = count_cells((height, width), cell)
    if missing := times * frames - num_frames:
        tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    missing_rows, missing_columns = rows * cell[0] - height, columns * cell[1] - width
    if missing_rows or missing_columns:
        tokens = F.pad(tokens, (0, 0, 0, missing_columns, 0, missing_rows))
    cells = tokens.reshape(batch_size, times, frames, rows, cell[0], columns, cell[1], channels)
    cells = cells.permute(0, 1, 3, 5, 2, 4, 6, 7)  # (B, Gt, Gh, Gw, t, h, w, C)
    return cells.reshape(batch_size, times * rows * columns, -1, channels), (times, rows, columns)


def _join_cells(
    tokens: torch.Tensor, grid_size: tuple[int, ...], cell_size: tuple[int, int, int], size: tuple[int, int, int]
) -> torch.Tensor:
    """Undo `_split_into_cells`: `(B, G, P, C)` to `(B*T, C, H, W)`."""
    cells = tokens.unflatten(2, cell_size).unflatten(1, grid_size)  # (B, Gt, Gh, Gw, t, h, w, C)
    joined = cells.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)  # (B, T, H, W, C)
    joined = joined[:, : size[0], : size[1], : size[2]]
    return joined.flatten(0, 1).permute(0, 3, 1, 2)
