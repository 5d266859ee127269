# SPDX-License-Identifier: Apache-2.0
"""Sampling of super tokens: means of the cells, then association and weighted sums in one pass over the tokens.

Shape letters are those of `windows.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import custom_op

from .launch import ceil_div, constants_of, count_cells, empty_channels_last, launch, tile_of
from .upsampling import num_blocks, reduce_partial_sums, sum_partially, upsample_tokens
from .windows import (
    load_parameter,
    load_rows,
    locate_block,
    locate_tokens,
    locate_window,
    multiply,
    neighbour_of,
    scale_and_shift,
    standardize,
    store_rows,
)


# instead of minus infinity, which a row without any member would turn into NaN
LOWEST = tl.constexpr(-3.0e38)

# up to here all channels of a token fit into one tile, which serves the association and the sums
MAX_CHANNELS = 256
# of a tile where there are more, or where channels do not meet
MAX_CHANNELS_OF_A_LOOP = 64

# of a tile, one is processed where LayerNorm takes registers as well: halves spill
NUM_PARTS_WITH_NORM = 4


class Normalization(NamedTuple):
    """LayerNorm's weight and bias, `(C,)`, its eps, and the mean and `1 / deviation` of each token, `(B, H, W, 1)`."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    mean: torch.Tensor
    rstd: torch.Tensor


@triton.jit
def cell_mean_kernel(
    tokens_ptr,
    super_tokens_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    H,
    W,
    Gh,
    Gw,
    eps,
    C: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Average the tokens of a cell; padding counts as zeros.

    `HAS_NORM` averages what LayerNorm makes of the tokens, and writes mean and reciprocal deviation of each; it needs
    all channels in one tile.
    """
    cell = tl.program_id(0)
    image = (cell // (Gh * Gw)).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if HAS_NORM:
        weight = load_parameter(weight_ptr, channel, C)
        bias = load_parameter(bias_ptr, channel, C)
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, h * w, BLOCK_T):
        place = start + tl.arange(0, BLOCK_T)
        y = cell // Gw % Gh * h + place // w
        x = cell % Gw * w + place % w
        is_in_image = (place < h * w) & (y < H) & (x < W)
        token_row = (image * H + y) * W + x
        tokens = load_rows(tokens_ptr, token_row, is_in_image, channel, C)  # (BLOCK_T, BLOCK_C)
        if HAS_NORM:
            values = tokens.to(tl.float32)
            mean = tl.sum(values, axis=1) / C
            centred = tl.where((channel < C)[None, :], values - mean[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / C + eps)
            tl.store(mean_ptr + token_row, mean, mask=is_in_image)
            tl.store(rstd_ptr + token_row, rstd, mask=is_in_image)
            tokens = scale_and_shift(centred * rstd[:, None], is_in_image, weight, bias).to(tokens.dtype)
        sums += tl.sum(tokens.to(tl.float32), axis=0)
    tl.store(super_tokens_ptr + cell.to(tl.int64) * C + channel, sums / (h * w), mask=channel < C)


@triton.jit
def associate_kernel(
    tokens_ptr,
    super_tokens_ptr,
    association_ptr,
    partial_sums_ptr,
    partial_mass_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    H,
    W,
    Gh,
    Gw,
    scale,
    C: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    MASK_OUTSIDE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Associate the tokens of a block of cells with its window, and sum them for each super token of it.

    Cells outside of the grid are zero vectors, which have affinity 0 and take part in the softmax (`MASK_OUTSIDE`
    leaves them out). Where the channels do not fit into one tile, the sums are left to `aggregate_kernel`. `HAS_NORM`
    takes tokens through LayerNorm first, and rounds them to their own dtype; it needs all channels in one tile.
    """
    block = tl.program_id(0)
    image, top, left = locate_block(block, Gh, Gw)
    window, is_there = locate_window(image, top, left, Gh, Gw)
    channel = tl.arange(0, BLOCK_C)
    super_tokens = load_rows(super_tokens_ptr, window, is_there, channel, C)  # (16, BLOCK_C)
    mass = tl.zeros((16,), tl.float32)
    sums = tl.zeros((16, BLOCK_C), tl.float32)
    if HAS_NORM:
        weight = load_parameter(weight_ptr, channel, C)
        bias = load_parameter(bias_ptr, channel, C)
    for start in range(0, 4 * h * w, BLOCK_T):
        cell, token_row, is_in_image, association_row, is_in_grid = locate_tokens(
            start, image, top, left, H, W, Gh, Gw, h, w, BLOCK_T
        )
        tokens = load_rows(tokens_ptr, token_row, is_in_image, channel, C)  # (BLOCK_T, BLOCK_C)
        if HAS_NORM:
            if BLOCK_C > 128 and tokens.dtype != tl.bfloat16:
                # kept through the loop, and split as `multiply` does, they spill
                super_tokens = load_rows(super_tokens_ptr, window, is_there, channel, C)
                weight = load_parameter(weight_ptr, channel, C)
                bias = load_parameter(bias_ptr, channel, C)
            standardized, _ = standardize(tokens, token_row, is_in_image, mean_ptr, rstd_ptr)
            tokens = scale_and_shift(standardized, is_in_image, weight, bias).to(tokens.dtype)
        affinity = multiply(tokens, tl.trans(super_tokens))  # (BLOCK_T, 16)
        for first in range(BLOCK_C, C, BLOCK_C):
            more = load_rows(tokens_ptr, token_row, is_in_image, first + channel, C)
            affinity += multiply(more, tl.trans(load_rows(super_tokens_ptr, window, is_there, first + channel, C)))
        neighbour, is_neighbour = neighbour_of(cell)
        takes_part = is_neighbour & is_there[None, :] if MASK_OUTSIDE else is_neighbour
        affinity = tl.where(takes_part, affinity * scale, LOWEST)
        shares = tl.exp(affinity - tl.max(affinity, axis=1)[:, None])
        shares = shares / tl.sum(shares, axis=1)[:, None]
        shares = tl.where(is_in_grid[:, None], shares, 0.0)
        is_stored = is_in_grid[:, None] & is_neighbour
        tl.store(association_ptr + association_row[:, None] * 9 + neighbour, shares, mask=is_stored)
        mass += tl.sum(shares, axis=0)
        if BLOCK_C >= C:
            sums += multiply(tl.trans(shares), tokens)
    partial = block.to(tl.int64) * 16 + tl.arange(0, 16)
    tl.store(partial_mass_ptr + partial, mass, mask=is_there)
    if BLOCK_C >= C:
        store_rows(partial_sums_ptr, partial, is_there, channel, sums, C)


@custom_op("svit_hf_triton::sample_super_tokens", mutates_args=())
def sample_super_tokens(
    tokens: torch.Tensor, cell_size: Sequence[int], num_iterations: int, sampler: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample super tokens.

    Args:
        tokens: Shape `(B, C, H, W)`.
        cell_size: `(h, w)`.
        num_iterations: Rounds of association and averaging, at least 1.
        sampler: "soft", or "soft_masked" to leave cells outside of the grid out of the softmax.

    Returns:
        Super tokens, shape `(B, C, Gh, Gw)`, channels_last, dtype of the tokens; association, `(B, G, P, 9)`, and
        mass, `(B, G)`, both float32 and constants for autograd.
    """
    tokens = tokens.contiguous(memory_format=torch.channels_last)
    super_tokens = empty_super_tokens(tokens, cell_size)
    association, mass = iterate(tokens, cell_size, num_iterations, sampler, super_tokens)
    return super_tokens, association, mass


def iterate(
    tokens: torch.Tensor,
    cell_size: Sequence[int],
    num_iterations: int,
    sampler: str,
    super_tokens: torch.Tensor,
    normalization: Normalization | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the super tokens that rounds of association and averaging lead to; return association and mass.

    With a `normalization`, tokens pass LayerNorm before anything else, and its mean and deviation are written.
    """
    association, mass = empty_association(tokens, cell_size)
    # what the tokens are compared with is float32 until the last round
    means = torch.empty_like(super_tokens, dtype=torch.float32)
    _average_cells(tokens, cell_size, means, normalization)
    for iteration in range(num_iterations):
        partial_sums, partial_mass = _associate(
            tokens, cell_size, sampler == "soft_masked", means, association, normalization
        )
        result = super_tokens if iteration == num_iterations - 1 else means
        reduce_partial_sums(partial_sums, partial_mass, mass, result)
    return association, mass


def _average_cells(
    tokens: torch.Tensor,
    cell_size: Sequence[int],
    super_tokens: torch.Tensor,
    normalization: Normalization | None,
) -> None:
    batch_size, channels, rows, columns = super_tokens.shape
    weight, bias, eps, mean, rstd = normalization or _no_normalization(tokens)
    max_channels = MAX_CHANNELS if normalization else MAX_CHANNELS_OF_A_LOOP
    tile = tile_of(cell_size[0] * cell_size[1], channels, tokens.dtype, max_channels)
    launch(
        cell_mean_kernel,
        (batch_size * rows * columns, ceil_div(channels, tile.channels)),
        tokens,
        super_tokens,
        weight,
        bias,
        mean,
        rstd,
        *tokens.shape[2:],
        rows,
        columns,
        eps,
        HAS_NORM=normalization is not None,
        **constants_of(tile, channels, cell_size),
    )


def _no_normalization(tokens: torch.Tensor) -> Normalization:
    # kernels without LayerNorm do not look at these
    return Normalization(tokens, tokens, 0.0, tokens, tokens)


def _associate(
    tokens: torch.Tensor,
    cell_size: Sequence[int],
    mask_outside: bool,
    super_tokens: torch.Tensor,
    association: torch.Tensor,
    normalization: Normalization | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the association; return partial sums and partial mass."""
    batch_size, channels, rows, columns = super_tokens.shape
    blocks = num_blocks(batch_size, rows, columns)
    has_sums = channels <= MAX_CHANNELS
    weight, bias, _, mean, rstd = normalization or _no_normalization(tokens)
    tile = tile_of(
        4 * cell_size[0] * cell_size[1],
        channels,
        tokens.dtype,
        MAX_CHANNELS if has_sums else MAX_CHANNELS_OF_A_LOOP,
        NUM_PARTS_WITH_NORM if normalization else 1,
    )
    partial_mass = torch.empty(blocks, 16, dtype=torch.float32, device=tokens.device)
    partial_sums = torch.empty(blocks, 16, channels if has_sums else 0, dtype=torch.float32, device=tokens.device)
    launch(
        associate_kernel,
        (blocks,),
        tokens,
        super_tokens,
        association,
        partial_sums,
        partial_mass,
        weight,
        bias,
        mean,
        rstd,
        *tokens.shape[2:],
        rows,
        columns,
        channels**-0.5,
        MASK_OUTSIDE=mask_outside,
        HAS_NORM=normalization is not None,
        **constants_of(tile, channels, cell_size),
    )
    return partial_sums if has_sums else sum_partially(tokens, association, cell_size), partial_mass


def empty_super_tokens(
    tokens: torch.Tensor, cell_size: Sequence[int], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return uninitialised super tokens for a token grid, in its dtype if none is given."""
    return empty_channels_last(tokens, *tokens.shape[:2], *count_cells(tokens.shape[2:], cell_size), dtype=dtype)


def empty_association(tokens: torch.Tensor, cell_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an uninitialised association, `(B, G, P, 9)`, and mass, `(B, G)`, for a token grid."""
    rows, columns = count_cells(tokens.shape[2:], cell_size)
    shape = tokens.shape[0], rows * columns
    association = torch.empty(*shape, cell_size[0] * cell_size[1], 9, dtype=torch.float32, device=tokens.device)
    return association, torch.empty(shape, dtype=torch.float32, device=tokens.device)


@sample_super_tokens.register_fake
def _(tokens, cell_size, num_iterations, sampler):
    return empty_super_tokens(tokens, cell_size), *empty_association(tokens, cell_size)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    tokens, ctx.cell_size, _, _ = inputs
    _, association, mass = output
    ctx.size = tokens.shape[2:]
    ctx.mark_non_differentiable(association, mass)
    # PyTorch would make zeros as the gradients of these
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(association, mass)


def _differentiate(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    association, mass = ctx.saved_tensors
    return upsample_tokens(gradient, association, ctx.cell_size, ctx.size, mass), None, None, None


sample_super_tokens.register_autograd(_differentiate, setup_context=_keep)
