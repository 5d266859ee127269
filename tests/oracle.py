# SPDX-License-Identifier: Apache-2.0
"""Super token attention as the paper writes it: dense, slow, one token after the other, in float64.

Nothing is shared with the implementation under test. `Q` is the whole N x G matrix; cells outside of the grid are
extra zero vectors that take part in the softmax (`zero-padded neighbours`).

Shape letters: `B` batch, `C` channels, `H W` token grid (after padding), `h w` cell size, `Gh Gw` super-token grid,
`G = Gh*Gw`, `N = H*W`.
"""

from collections.abc import Callable

import torch


SAMPLERS = ("soft", "soft_masked", "grid", "hard", "position", "differentiable", "random", "cosine", "slots")
# gradients flow through the association
DIFFERENTIABLE = ("differentiable", "cosine", "slots")


def affinity_of(
    token: torch.Tensor, super_token: torch.Tensor, place: torch.Tensor, middle: torch.Tensor, sampler: str
) -> torch.Tensor:
    """Compare a token with a super token; `place` of the token and `middle` of the cell are in cells."""
    if sampler == "cosine":
        lengths = (token.square().sum() + 1e-6).sqrt() * (super_token.square().sum() + 1e-6).sqrt()
        return 10 * torch.dot(token, super_token) / lengths
    if sampler == "slots":
        # projections are the identity at the start
        token, super_token = (
            (each - each.mean()) / (each.var(correction=0) + 1e-5).sqrt() for each in (token, super_token)
        )
    affinity = torch.dot(token, super_token) / len(token) ** 0.5
    return affinity - 2 * (place - middle).square().sum() if sampler == "position" else affinity


def draw(number: int) -> float:
    """Return what stands for chance at a place: an integer hash, between 0 and 8."""
    for _ in range(2):
        number = ((number >> 16) ^ number) * 0x45D9F3B % 2**32
    return 8 * (((number >> 16) ^ number) % 2**16) / (2**16 - 1)


def shares_of(affinities: torch.Tensor, own: int, sampler: str) -> torch.Tensor:
    """Turn the affinities of a token with its candidates into shares; `own` is the candidate of its own cell."""
    shares = torch.zeros_like(affinities)
    if sampler == "grid":
        shares[own] = 1
    elif sampler == "hard":
        shares[own if affinities[own] == affinities.max() else affinities.argmax()] = 1
    else:
        shares = affinities.softmax(0)
    return shares


def associate(
    tokens: torch.Tensor, super_tokens: torch.Tensor, cell_size: tuple[int, int], sampler: str
) -> torch.Tensor:
    """Return Q, `(N, G)`, for tokens `(H, W, C)` and super tokens `(Gh, Gw, C)` (section 3.2, equation 3)."""
    height, width, _ = tokens.shape
    rows, columns, _ = super_tokens.shape
    association = torch.zeros(height * width, rows * columns, dtype=tokens.dtype)
    for y in range(height):
        for x in range(width):
            candidates, affinities = [], []
            place = torch.tensor([(y + 0.5) / cell_size[0], (x + 0.5) / cell_size[1]], dtype=tokens.dtype)
            cell = y // cell_size[0] * columns + x // cell_size[1]
            # the neighbours of all tokens of all cells, counted from 1
            number = 9 * (cell * cell_size[0] * cell_size[1] + y % cell_size[0] * cell_size[1] + x % cell_size[1])
            for row in range(y // cell_size[0] - 1, y // cell_size[0] + 2):
                for column in range(x // cell_size[1] - 1, x // cell_size[1] + 2):
                    number += 1
                    inside = 0 <= row < rows and 0 <= column < columns
                    if inside:
                        middle = torch.tensor([row + 0.5, column + 0.5], dtype=tokens.dtype)
                        affinity = affinity_of(tokens[y, x], super_tokens[row, column], place, middle, sampler)
                        affinities.append(tokens.new_tensor(draw(number)) if sampler == "random" else affinity)
                        candidates.append(row * columns + column)
                    elif sampler == "soft":
                        affinities.append(torch.zeros((), dtype=tokens.dtype))
                        candidates.append(None)
            shares = shares_of(torch.stack(affinities), candidates.index(cell), sampler)
            for candidate, share in zip(candidates, shares, strict=True):
                if candidate is not None:
                    association[y * width + x, candidate] = share
    return association


def sample(
    hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int, sampler: str = "soft"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return super tokens `(B, C, Gh, Gw)` and Q `(B, N, G)` of a grid that is a multiple of the cell."""
    all_super_tokens, all_associations = [], []
    for image in hidden_states.double():
        tokens = image.permute(1, 2, 0)  # (H, W, C)
        height, width, channels = tokens.shape
        rows, columns = height // cell_size[0], width // cell_size[1]
        means = [
            tokens[r * cell_size[0] : (r + 1) * cell_size[0], c * cell_size[1] : (c + 1) * cell_size[1]].mean((0, 1))
            for r in range(rows)
            for c in range(columns)
        ]
        super_tokens = torch.stack(means).view(rows, columns, channels)
        for _ in range(num_iterations):
            if sampler in DIFFERENTIABLE:
                association = associate(tokens, super_tokens, cell_size, sampler)
            else:
                association = associate(tokens.detach(), super_tokens.detach(), cell_size, sampler)
            normalised = association / (association.sum(0, keepdim=True) + 1e-12)
            super_tokens = (normalised.T @ tokens.reshape(-1, channels)).view(rows, columns, channels)
        all_super_tokens.append(super_tokens.permute(2, 0, 1))
        all_associations.append(association)
    return torch.stack(all_super_tokens), torch.stack(all_associations)


def upsample(super_tokens: torch.Tensor, association: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Return Q S as `(B, C, H, W)` (section 3.2, equation 9)."""
    tokens = association @ super_tokens.double().flatten(2).mT  # (B, N, C)
    return tokens.mT.unflatten(2, grid_size)


def super_token_attention(
    hidden_states: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
    cell_size: tuple[int, int],
    num_iterations: int,
    sampler: str = "soft",
) -> torch.Tensor:
    """Pad with zeros on the right and at the bottom, sample, attend, upsample, cut the padding off."""
    batch_size, channels, height, width = hidden_states.shape
    rows, columns = -(-height // cell_size[0]), -(-width // cell_size[1])
    padded = torch.zeros(batch_size, channels, rows * cell_size[0], columns * cell_size[1], dtype=torch.float64)
    padded[:, :, :height, :width] = hidden_states
    super_tokens, association = sample(padded, cell_size, num_iterations, sampler)
    return upsample(attend(super_tokens), association, padded.shape[-2:])[:, :, :height, :width]


def dense_association(
    association: torch.Tensor, grid_size: tuple[int, int], cell_size: tuple[int, int]
) -> torch.Tensor:
    """Spread the compact `(B, G, P, 9)` association of the implementation over the dense `(B, N, G)` form."""
    batch_size = association.shape[0]
    rows, columns = grid_size
    width = columns * cell_size[1]
    dense = torch.zeros(batch_size, rows * cell_size[0] * width, rows * columns, dtype=association.dtype)
    for cell in range(rows * columns):
        for token in range(cell_size[0] * cell_size[1]):
            y = cell // columns * cell_size[0] + token // cell_size[1]
            x = cell % columns * cell_size[1] + token % cell_size[1]
            for neighbour in range(9):
                row, column = cell // columns + neighbour // 3 - 1, cell % columns + neighbour % 3 - 1
                if 0 <= row < rows and 0 <= column < columns:
                    dense[:, y * width + x, row * columns + column] = association[:, cell, token, neighbour]
    return dense


def associate_clip(tokens: torch.Tensor, super_tokens: torch.Tensor, cell_size: tuple[int, int, int]) -> torch.Tensor:
    """Return Q, `(T*H*W, Gt*Gh*Gw)`, of a clip `(T, H, W, C)`: 27 neighbours, none outside in time, zeros in space."""
    num_tokens = tokens.shape[:3].numel()
    times, rows, columns, channels = super_tokens.shape
    association = torch.zeros(num_tokens, times * rows * columns, dtype=tokens.dtype)
    places = [
        (z, y, x) for z in range(tokens.shape[0]) for y in range(tokens.shape[1]) for x in range(tokens.shape[2])
    ]
    for token, (z, y, x) in enumerate(places):
        candidates, affinities = [], []
        for time in range(max(0, z // cell_size[0] - 1), min(times, z // cell_size[0] + 2)):
            for row in range(y // cell_size[1] - 1, y // cell_size[1] + 2):
                for column in range(x // cell_size[2] - 1, x // cell_size[2] + 2):
                    inside = 0 <= row < rows and 0 <= column < columns
                    other = super_tokens[time, row, column] if inside else torch.zeros(channels, dtype=tokens.dtype)
                    affinities.append(torch.dot(tokens[z, y, x], other) / channels**0.5)
                    candidates.append((time * rows + row) * columns + column if inside else None)
        for candidate, share in zip(candidates, torch.stack(affinities).softmax(0), strict=True):
            if candidate is not None:
                association[token, candidate] = share
    return association


def video_super_token_attention(
    hidden_states: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
    num_frames: int,
    cell_size: tuple[int, int, int],
    num_iterations: int,
) -> torch.Tensor:
    """Attend through the super tokens of clips, `(B*T, C, H, W)`: the last frame repeated, zeros right and below."""
    _, channels, height, width = hidden_states.shape
    outputs = []
    for clip in hidden_states.double().split(num_frames):
        sizes = [-(-size // cell) for size, cell in zip((num_frames, height, width), cell_size, strict=True)]
        padded = torch.zeros(*(size * cell for size, cell in zip(sizes, cell_size, strict=True)), channels).double()
        for time in range(len(padded)):
            padded[time, :height, :width] = clip[min(time, num_frames - 1)].permute(1, 2, 0)
        by_cell = (
            padded.unflatten(2, (-1, cell_size[2])).unflatten(1, (-1, cell_size[1])).unflatten(0, (-1, cell_size[0]))
        )
        super_tokens = by_cell.mean((1, 3, 5))
        tokens = padded.flatten(0, 2)
        for _ in range(num_iterations):
            association = associate_clip(padded.detach(), super_tokens.detach(), cell_size)
            normalised = association / (association.sum(0, keepdim=True) + 1e-12)
            super_tokens = (normalised.T @ tokens).view(*sizes, channels)
        attended = attend(super_tokens.permute(3, 0, 1, 2).flatten(1, 2).unsqueeze(0))
        upsampled = (association @ attended[0].flatten(1).mT).view_as(padded)
        outputs.append(upsampled[:num_frames, :height, :width].permute(0, 3, 1, 2))
    return torch.cat(outputs)
