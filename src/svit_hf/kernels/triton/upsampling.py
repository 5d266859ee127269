# SPDX-License-Identifier: Apache-2.0
"""Upsampling, and aggregation with a given association: the two adjoint operators, each the other's gradient.

Shape letters are those of `windows.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import custom_op

from .launch import ceil_div, constants_of, count_cells, empty_channels_last, launch, tile_of
from .windows import load_association, load_rows, locate_block, locate_tokens, locate_window, multiply, store_rows


# of a tile where tokens are only spread or summed: channels are independent there, so more of them are more programs
MAX_CHANNELS = 128


@triton.jit
def upsample_kernel(
    super_tokens_ptr,
    association_ptr,
    mass_ptr,
    tokens_ptr,
    H,
    W,
    Gh,
    Gw,
    C: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    HAS_MASS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Give each token its mixture of super tokens; a program does `BLOCK_T` tokens of a block of cells."""
    num_chunks: tl.constexpr = (4 * h * w + BLOCK_T - 1) // BLOCK_T
    image, top, left = locate_block(tl.program_id(0) // num_chunks, Gh, Gw)
    start = tl.program_id(0) % num_chunks * BLOCK_T
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    cell, token_row, is_in_image, association_row, is_in_grid = locate_tokens(
        start, image, top, left, H, W, Gh, Gw, h, w, BLOCK_T
    )
    window, is_there = locate_window(image, top, left, Gh, Gw)
    shares = load_association(association_ptr, association_row, is_in_grid, cell)  # (BLOCK_T, 16)
    if HAS_MASS:
        mass = tl.load(mass_ptr + window, mask=is_there, other=1.0)
        shares *= (1.0 / (mass + 1e-12))[None, :]
    super_tokens = load_rows(super_tokens_ptr, window, is_there, channel, C)  # (16, BLOCK_C)
    store_rows(tokens_ptr, token_row, is_in_image, channel, multiply(shares, super_tokens), C)


@triton.jit
def aggregate_kernel(
    tokens_ptr,
    association_ptr,
    partial_sums_ptr,
    H,
    W,
    Gh,
    Gw,
    C: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum the tokens of a block of cells for each super token of its window."""
    block = tl.program_id(0)
    image, top, left = locate_block(block, Gh, Gw)
    _, is_there = locate_window(image, top, left, Gh, Gw)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((16, BLOCK_C), tl.float32)
    for start in range(0, 4 * h * w, BLOCK_T):
        cell, token_row, is_in_image, association_row, is_in_grid = locate_tokens(
            start, image, top, left, H, W, Gh, Gw, h, w, BLOCK_T
        )
        shares = load_association(association_ptr, association_row, is_in_grid, cell)  # (BLOCK_T, 16)
        tokens = load_rows(tokens_ptr, token_row, is_in_image, channel, C)  # (BLOCK_T, BLOCK_C)
        sums += multiply(tl.trans(shares), tokens)
    store_rows(partial_sums_ptr, block.to(tl.int64) * 16 + tl.arange(0, 16), is_there, channel, sums, C)


@triton.jit
def reduce_kernel(
    partial_sums_ptr,
    partial_mass_ptr,
    mass_ptr,
    super_tokens_ptr,
    Gh,
    Gw,
    C: tl.constexpr,
    MASS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add what the (at most) 2x2 blocks around a super token have for it, and divide by its mass.

    `MASS` says where the mass comes from: "none" divides by nothing, "given" reads it, "partial" adds it up as well
    and writes it. One program adds for a super token, in a fixed order, so that the result is the same in every run.
    """
    super_token = tl.program_id(0)
    image = (super_token // (Gh * Gw)).to(tl.int64)
    row = super_token // Gw % Gh
    column = super_token % Gw
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    blocks_down = (Gh + 1) // 2
    blocks_across = (Gw + 1) // 2
    sums = tl.zeros((BLOCK_C,), tl.float32)
    mass = 0.0
    for source in tl.static_range(4):
        # its own block, and the one beyond the edge of that block that it lies at
        block_row, down = _seen_from(row, source // 2)
        block_column, across = _seen_from(column, source % 2)
        is_there = (block_row >= 0) & (block_row < blocks_down) & (block_column >= 0) & (block_column < blocks_across)
        partial = ((image * blocks_down + block_row) * blocks_across + block_column) * 16 + down * 4 + across
        sums += tl.load(partial_sums_ptr + partial * C + channel, mask=is_there & (channel < C), other=0.0)
        if MASS == "partial":
            mass += tl.load(partial_mass_ptr + partial, mask=is_there, other=0.0)
    if MASS == "partial":
        tl.store(mass_ptr + super_token, mass, mask=tl.program_id(1) == 0)
    if MASS == "given":
        mass = tl.load(mass_ptr + super_token)
    if MASS != "none":
        sums = sums / (mass + 1e-12)
    offset = super_token.to(tl.int64) * C + channel
    tl.store(super_tokens_ptr + offset, sums.to(super_tokens_ptr.dtype.element_ty), mask=channel < C)


@triton.jit
def _seen_from(place, neighbour: tl.constexpr):
    """Return a block along one axis that sees a super token in its window, and where in the window."""
    if neighbour == 0:
        block = place // 2
        seen_at = place % 2 + 1
    else:
        block = place // 2 + place % 2 * 2 - 1
        seen_at = 3 - place % 2 * 3
    return block, seen_at


@custom_op("svit_hf_triton::upsample_tokens", mutates_args=())
def upsample_tokens(
    super_tokens: torch.Tensor,
    association: torch.Tensor,
    cell_size: Sequence[int],
    size: Sequence[int],
    mass: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `sum_k Q[p, k] S[k]`, with `Q / mass` for Q where a mass is given.

    Args:
        super_tokens: Shape `(B, C, Gh, Gw)`.
        association: Shape `(B, G, P, 9)`, float32, a constant for autograd, as is the mass.
        cell_size: `(h, w)`.
        size: `(H, W)`.
        mass: Shape `(B, G)`, float32, or None.

    Returns:
        Tokens, shape `(B, C, H, W)`, channels_last, dtype of the super tokens.
    """
    batch_size, channels, rows, columns = super_tokens.shape
    super_tokens = super_tokens.contiguous(memory_format=torch.channels_last)
    tokens = empty_channels_last(super_tokens, batch_size, channels, *size)
    num_tokens = 4 * cell_size[0] * cell_size[1]
    tile = tile_of(num_tokens, channels, super_tokens.dtype, MAX_CHANNELS)
    num_chunks = ceil_div(num_tokens, tile.tokens)
    launch(
        upsample_kernel,
        (num_blocks(batch_size, rows, columns) * num_chunks, ceil_div(channels, tile.channels)),
        super_tokens,
        association.contiguous(),
        association if mass is None else mass.contiguous(),
        tokens,
        *size,
        rows,
        columns,
        HAS_MASS=mass is not None,
        **constants_of(tile, channels, cell_size),
    )
    return tokens


@custom_op("svit_hf_triton::aggregate_tokens", mutates_args=())
def aggregate_tokens(
    tokens: torch.Tensor, association: torch.Tensor, cell_size: Sequence[int], mass: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `sum_(p, k) Q[p, k] X[p]` for every super token, the adjoint of `upsample_tokens`.

    Args:
        tokens: Shape `(B, C, H, W)`.
        association: As in `upsample_tokens`.
        cell_size: `(h, w)`.
        mass: As in `upsample_tokens`.

    Returns:
        Super tokens, shape `(B, C, Gh, Gw)`, channels_last, dtype of the tokens.
    """
    super_tokens = empty_channels_last(tokens, *tokens.shape[:2], *count_cells(tokens.shape[2:], cell_size))
    tokens = tokens.contiguous(memory_format=torch.channels_last)
    partial_sums = sum_partially(tokens, association.contiguous(), cell_size)
    reduce_partial_sums(partial_sums, None, None if mass is None else mass.contiguous(), super_tokens)
    return super_tokens


def sum_partially(tokens: torch.Tensor, association: torch.Tensor, cell_size: Sequence[int]) -> torch.Tensor:
    """Return what every block has for its window, `(blocks, 16, C)`; members outside of the grid are not written."""
    batch_size, channels, *size = tokens.shape
    rows, columns = count_cells(size, cell_size)
    blocks = num_blocks(batch_size, rows, columns)
    partial_sums = torch.empty(blocks, 16, channels, dtype=torch.float32, device=tokens.device)
    tile = tile_of(4 * cell_size[0] * cell_size[1], channels, tokens.dtype, MAX_CHANNELS)
    launch(
        aggregate_kernel,
        (blocks, ceil_div(channels, tile.channels)),
        tokens,
        association,
        partial_sums,
        *size,
        rows,
        columns,
        **constants_of(tile, channels, cell_size),
    )
    return partial_sums


def reduce_partial_sums(
    partial_sums: torch.Tensor,
    partial_mass: torch.Tensor | None,
    mass: torch.Tensor | None,
    super_tokens: torch.Tensor,
) -> None:
    """Write the super tokens that partial sums stand for, and with `partial_mass` the mass too."""
    batch_size, channels, rows, columns = super_tokens.shape
    block_channels = tile_of(1, channels, torch.float32, MAX_CHANNELS).channels
    launch(
        reduce_kernel,
        (batch_size * rows * columns, ceil_div(channels, block_channels)),
        partial_sums,
        partial_sums if partial_mass is None else partial_mass,
        partial_sums if mass is None else mass,
        super_tokens,
        rows,
        columns,
        C=channels,
        MASS="none" if mass is None else "given" if partial_mass is None else "partial",
        BLOCK_C=block_channels,
        num_warps=1,
    )


def num_blocks(batch_size: int, rows: int, columns: int) -> int:
    """Count the blocks of 2x2 cells of all images."""
    return batch_size * ceil_div(rows, 2) * ceil_div(columns, 2)


@upsample_tokens.register_fake
def _(super_tokens, association, cell_size, size, mass=None):
    return empty_channels_last(super_tokens, *super_tokens.shape[:2], *size)


@aggregate_tokens.register_fake
def _(tokens, association, cell_size, mass=None):
    return empty_channels_last(tokens, *tokens.shape[:2], *count_cells(tokens.shape[2:], cell_size))


def _keep_for_upsample(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, association, ctx.cell_size, _, mass = inputs
    ctx.save_for_backward(association, mass)


def _differentiate_upsample(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    association, mass = ctx.saved_tensors
    return aggregate_tokens(gradient, association, ctx.cell_size, mass), None, None, None, None


def _keep_for_aggregate(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    tokens, association, ctx.cell_size, mass = inputs
    ctx.size = tokens.shape[2:]
    ctx.save_for_backward(association, mass)


def _differentiate_aggregate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    association, mass = ctx.saved_tensors
    return upsample_tokens(gradient, association, ctx.cell_size, ctx.size, mass), None, None, None


upsample_tokens.register_autograd(_differentiate_upsample, setup_context=_keep_for_upsample)
aggregate_tokens.register_autograd(_differentiate_aggregate, setup_context=_keep_for_aggregate)
