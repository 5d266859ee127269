# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and sampling of super tokens at once: normalized tokens exist in registers alone, forward and backward.

The first pass over the tokens finds mean and deviation of each, and the means of the cells; the association of
`sampling.py` is the second. One pass in the other direction spreads the gradient of the super tokens, takes it through
LayerNorm and writes it. Shape letters are those of `windows.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import custom_op

from .launch import constants_of, count_cells, empty_channels_last, launch, tile_of
from .sampling import (
    MAX_CHANNELS,
    NUM_PARTS_WITH_NORM,
    Normalization,
    empty_association,
    empty_super_tokens,
    iterate,
    sample_super_tokens,
)
from .upsampling import num_blocks, upsample_tokens
from .windows import (
    load_association,
    load_parameter,
    load_rows,
    locate_block,
    locate_tokens,
    locate_window,
    multiply,
    standardize,
    store_rows,
)


@triton.jit
def differentiate_kernel(
    gradient_ptr,
    tokens_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    association_ptr,
    mass_ptr,
    token_gradient_ptr,
    parameter_gradient_ptr,
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
    """Spread the gradient of the super tokens over the tokens of a block of cells, and take it through LayerNorm.

    Writes the gradient of these tokens, and what they add to those of weight and bias, `(blocks, 2, C)`.
    """
    block = tl.program_id(0)
    image, top, left = locate_block(block, Gh, Gw)
    window, is_there = locate_window(image, top, left, Gh, Gw)
    channel = tl.arange(0, BLOCK_C)
    by_mass = 1.0 / (tl.load(mass_ptr + window, mask=is_there, other=1.0) + 1e-12)
    super_token_gradient = load_rows(gradient_ptr, window, is_there, channel, C)  # (16, BLOCK_C)
    weight_gradient = tl.zeros((BLOCK_C,), tl.float32)
    bias_gradient = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, 4 * h * w, BLOCK_T):
        cell, token_row, is_in_image, association_row, is_in_grid = locate_tokens(
            start, image, top, left, H, W, Gh, Gw, h, w, BLOCK_T
        )
        shares = load_association(association_ptr, association_row, is_in_grid, cell) * by_mass[None, :]
        gradient = multiply(shares, super_token_gradient)  # (BLOCK_T, BLOCK_C), of the normalized tokens
        gradient = tl.where(is_in_image[:, None], gradient, 0.0)
        tokens = load_rows(tokens_ptr, token_row, is_in_image, channel, C)
        standardized, rstd = standardize(tokens, token_row, is_in_image, mean_ptr, rstd_ptr)
        weight_gradient += tl.sum(gradient * standardized, axis=0)
        bias_gradient += tl.sum(gradient, axis=0)
        gradient *= load_parameter(weight_ptr, channel, C)[None, :]
        # mean and deviation depend on every channel: what would change them does not reach the result
        through_mean = tl.sum(gradient, axis=1) / C
        through_deviation = tl.sum(gradient * standardized, axis=1) / C
        gradient -= through_mean[:, None] + standardized * through_deviation[:, None]
        store_rows(token_gradient_ptr, token_row, is_in_image, channel, gradient * rstd[:, None], C)
    partial = parameter_gradient_ptr + block.to(tl.int64) * 2 * C + channel
    tl.store(partial, weight_gradient, mask=channel < C)
    tl.store(partial + C, bias_gradient, mask=channel < C)


@custom_op("svit_hf_triton::normalize_and_sample", mutates_args=())
def normalize_and_sample(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    cell_size: Sequence[int],
    num_iterations: int,
    sampler: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample super tokens from what LayerNorm over the channels makes of tokens.

    More channels than one tile holds are normalized by PyTorch, in passes of their own.

    Args:
        tokens: Shape `(B, C, H, W)`.
        weight: Shape `(C,)`, any float dtype.
        bias: Shape `(C,)`, likewise.
        eps: Added to the variance.
        cell_size: `(h, w)`.
        num_iterations: Rounds of association and averaging, at least 1.
        sampler: As in `sample_super_tokens`.
        dtype: Of the super tokens. Autocast has float32 super tokens of half precision tokens; normalized tokens are
            rounded to the dtype of tokens in any case, other than by PyTorch.

    Returns:
        Super tokens, shape `(B, C, Gh, Gw)`, channels_last; association, `(B, G, P, 9)`, and mass, `(B, G)`, both
        float32; mean and reciprocal standard deviation of the tokens, `(B, H, W, 1)`, float32 unless PyTorch
        normalizes. All but the super tokens are constants for autograd.
    """
    if tokens.shape[1] > MAX_CHANNELS:
        normalized, mean, rstd = _normalize_apart(tokens, weight, bias, eps, dtype)
        return *sample_super_tokens(normalized, cell_size, num_iterations, sampler), mean, rstd
    tokens = tokens.contiguous(memory_format=torch.channels_last)
    mean, rstd = _empty_statistics(tokens)
    normalization = Normalization(weight.contiguous(), bias.contiguous(), eps, mean, rstd)
    super_tokens = empty_super_tokens(tokens, cell_size, dtype)
    association, mass = iterate(tokens, cell_size, num_iterations, sampler, super_tokens, normalization)
    return super_tokens, association, mass, mean, rstd


@custom_op("svit_hf_triton::differentiate_normalize_and_sample", mutates_args=())
def differentiate_normalize_and_sample(
    gradient: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    association: torch.Tensor,
    mass: torch.Tensor,
    cell_size: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of `normalize_and_sample`, for channels that fit into one tile.

    `gradient` is that of the super tokens, `(B, C, Gh, Gw)`, rounded to bfloat16 where the tokens are that; the rest
    was given there, or returned.

    Returns:
        Gradients of tokens (channels_last), weight and bias, in the dtypes of tokens and weight.
    """
    batch_size, channels, *size = tokens.shape
    if tokens.dtype == torch.bfloat16:
        # under autocast super tokens are float32, and so is their gradient: but the convolution that it comes from
        # made it in bfloat16, whose products are many times as fast
        gradient = gradient.to(tokens.dtype)
    rows, columns = count_cells(size, cell_size)
    blocks = num_blocks(batch_size, rows, columns)
    token_gradient = empty_channels_last(tokens, *tokens.shape)
    parameter_gradients = torch.empty(blocks, 2, channels, dtype=torch.float32, device=tokens.device)
    tile = tile_of(4 * cell_size[0] * cell_size[1], channels, gradient.dtype, MAX_CHANNELS, NUM_PARTS_WITH_NORM)
    launch(
        differentiate_kernel,
        (blocks,),
        gradient.contiguous(memory_format=torch.channels_last),
        tokens.contiguous(memory_format=torch.channels_last),
        weight.contiguous(),
        mean.contiguous(),
        rstd.contiguous(),
        association.contiguous(),
        mass.contiguous(),
        token_gradient,
        parameter_gradients,
        *size,
        rows,
        columns,
        **constants_of(tile, channels, cell_size),
    )
    # in an order that depends on the shape alone, so that the same input gives the same bits
    weight_gradient, bias_gradient = (partial.sum(dim=0).to(weight.dtype) for partial in parameter_gradients.unbind(1))
    return token_gradient, weight_gradient, bias_gradient


def _normalize_apart(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return normalized tokens, `(B, C, H, W)`, mean and reciprocal deviation as PyTorch's own LayerNorm does."""
    normalized, mean, rstd = torch.native_layer_norm(
        tokens.permute(0, 2, 3, 1).to(dtype), (tokens.shape[1],), weight.to(dtype), bias.to(dtype), eps
    )
    return normalized.permute(0, 3, 1, 2), mean, rstd


def _differentiate_apart(
    gradient: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of tokens, weight and bias for that of normalized tokens; differentiable itself."""
    dtype = gradient.dtype
    token_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_layer_norm_backward(
        gradient.permute(0, 2, 3, 1),
        tokens.permute(0, 2, 3, 1).to(dtype),
        (tokens.shape[1],),
        mean,
        rstd,
        weight.to(dtype),
        bias.to(dtype),
        (True, True, True),
    )
    return (
        token_gradient.permute(0, 3, 1, 2).to(tokens.dtype),
        weight_gradient.to(weight.dtype),
        bias_gradient.to(bias.dtype),
    )


def _empty_statistics(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch_size, _, height, width = tokens.shape
    mean = torch.empty(batch_size, height, width, 1, dtype=torch.float32, device=tokens.device)
    return mean, torch.empty_like(mean)


@normalize_and_sample.register_fake
def _(tokens, weight, bias, eps, cell_size, num_iterations, sampler, dtype):
    if tokens.shape[1] > MAX_CHANNELS:
        _, mean, rstd = _normalize_apart(tokens, weight, bias, eps, dtype)
    else:
        mean, rstd = _empty_statistics(tokens)
    return empty_super_tokens(tokens, cell_size, dtype), *empty_association(tokens, cell_size), mean, rstd


@differentiate_normalize_and_sample.register_fake
def _(gradient, tokens, weight, mean, rstd, association, mass, cell_size):
    return empty_channels_last(tokens, *tokens.shape), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    tokens, weight, bias, _, ctx.cell_size, _, _, _ = inputs
    constants = output[1:]
    ctx.mark_non_differentiable(*constants)
    # PyTorch would make zeros as the gradients of these
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tokens, weight, bias, *constants)


def _differentiate(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    tokens, weight, bias, association, mass, mean, rstd = ctx.saved_tensors
    is_wide = tokens.shape[1] > MAX_CHANNELS
    # under grad mode the gradient is to be differentiated in its turn, which the fused kernel cannot be
    if is_wide or torch.is_grad_enabled():
        # statistics of the fused kernel are float32, and PyTorch wants them in the company of float32
        gradient = gradient if is_wide else gradient.float()
        gradient = upsample_tokens(gradient, association, ctx.cell_size, tokens.shape[2:], mass)
        gradients = _differentiate_apart(gradient, tokens, weight, bias, mean, rstd)
    else:
        gradients = differentiate_normalize_and_sample(
            gradient, tokens, weight, mean, rstd, association, mass, ctx.cell_size
        )
    return *gradients, None, None, None, None, None


normalize_and_sample.register_autograd(_differentiate, setup_context=_keep)
