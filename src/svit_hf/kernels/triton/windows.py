# SPDX-License-Identifier: Apache-2.0
"""What the kernels over tokens share: the geometry of a block of cells, and products that keep float32.

A program works on a block of 2x2 cells. Their neighbours are a window of 4x4 super tokens, which is exactly the 16
rows that a tensor core multiplies at least, where the nine neighbours of a single cell would leave seven unused. The
association of a chunk of tokens is a matrix `(BLOCK_T, 16)` with nine entries per row that are not zero.

Shape letters: `B` batch, `C` channels, `H W` token grid, `h w` cell size, `Gh Gw` super-token grid, `G = Gh*Gw`,
`P = h*w` tokens per cell. Memory is dense: tokens `(B, H, W, C)`, super tokens `(B, Gh, Gw, C)`, association
`(B, G, P, 9)`.
"""

import triton
import triton.language as tl


@triton.jit
def locate_block(block, Gh, Gw):
    """Return the image, and row and column of the first cell, of a block (counted over all images)."""
    blocks_down = (Gh + 1) // 2
    blocks_across = (Gw + 1) // 2
    image = (block // (blocks_down * blocks_across)).to(tl.int64)
    return image, block // blocks_across % blocks_down * 2, block % blocks_across * 2


@triton.jit
def locate_tokens(start, image, top, left, H, W, Gh, Gw, h: tl.constexpr, w: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return where the tokens `start...` of a block are, `(BLOCK_T,)` each.

    Cell within the block; index of the token's row in `(B, H, W, C)`, and whether it is in the image rather than
    padding; index of its row in the association, and whether its cell exists.
    """
    token = start + tl.arange(0, BLOCK_T)
    cell = token // (h * w)
    place = token % (h * w)
    row = top + cell // 2
    column = left + cell % 2
    is_in_grid = (cell < 4) & (row < Gh) & (column < Gw)
    y = row * h + place // w
    x = column * w + place % w
    is_in_image = is_in_grid & (y < H) & (x < W)
    token_row = (image * H + y) * W + x
    association_row = ((image * Gh + row) * Gw + column) * (h * w) + place
    return cell, token_row, is_in_image, association_row, is_in_grid


@triton.jit
def locate_window(image, top, left, Gh, Gw):
    """Return the index of the window's super tokens in `(B, Gh, Gw)`, and whether they exist, `(16,)` each."""
    member = tl.arange(0, 16)
    row = top - 1 + member // 4
    column = left - 1 + member % 4
    is_in_grid = (row >= 0) & (row < Gh) & (column >= 0) & (column < Gw)
    return (image * Gh + row) * Gw + column, is_in_grid


@triton.jit
def neighbour_of(cell):
    """Return which of its nine neighbours each window member is to a token, and whether it is any, `(BLOCK_T, 16)`."""
    member = tl.arange(0, 16)[None, :]
    down = member // 4 - (cell // 2)[:, None]
    across = member % 4 - (cell % 2)[:, None]
    return down * 3 + across, (down >= 0) & (down < 3) & (across >= 0) & (across < 3)


@triton.jit
def load_association(association_ptr, association_row, is_in_grid, cell):
    """Return the association of tokens with the window, `(BLOCK_T, 16)`, zeros for strangers."""
    neighbour, is_neighbour = neighbour_of(cell)
    mask = is_in_grid[:, None] & is_neighbour
    return tl.load(association_ptr + association_row[:, None] * 9 + neighbour, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_rows(pointer, row, is_there, channel, C: tl.constexpr):
    """Load channels of rows of a dense `(rows, C)`, `(len(row), len(channel))`, zeros where there is none."""
    mask = is_there[:, None] & (channel < C)[None, :]
    return tl.load(pointer + row[:, None] * C + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, row, is_there, channel, values, C: tl.constexpr):
    """Store what `load_rows` loads."""
    mask = is_there[:, None] & (channel < C)[None, :]
    tl.store(pointer + row[:, None] * C + channel[None, :], values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_parameter(pointer, channel, C: tl.constexpr):
    """Load weight or bias of LayerNorm as float32, `(len(channel),)`, zeros where there is none."""
    return tl.load(pointer + channel, mask=channel < C, other=0.0).to(tl.float32)


@triton.jit
def standardize(tokens, token_row, is_in_image, mean_ptr, rstd_ptr):
    """Return tokens less their mean, divided by their deviation, `(BLOCK_T, BLOCK_C)`, and one over the deviation."""
    mean = tl.load(mean_ptr + token_row, mask=is_in_image, other=0.0)
    rstd = tl.load(rstd_ptr + token_row, mask=is_in_image, other=0.0)
    return (tokens.to(tl.float32) - mean[:, None]) * rstd[:, None], rstd


@triton.jit
def scale_and_shift(standardized, is_in_image, weight, bias):
    """Finish LayerNorm in float32; padding, which is added afterwards, stays zero."""
    return tl.where(is_in_image[:, None], standardized * weight[None, :] + bias[None, :], 0.0)


@triton.jit
def multiply(a, b):
    """Multiply matrices, one of them float32, with the precision of float32.

    bfloat16 has the range of float32 and a third of its digits, so that three of them hold a float32. float16 lacks
    the range: a share of 1e-9 of a super token that only few tokens want would be lost.
    """
    if a.dtype == tl.bfloat16:
        high = b.to(tl.bfloat16)
        rest = b - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        product = tl.dot(a, high, tl.dot(a, middle, tl.dot(a, low)))
    elif b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        rest = a - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        product = tl.dot(high, b, tl.dot(middle, b, tl.dot(low, b)))
    else:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
    return product
