# SPDX-License-Identifier: Apache-2.0
"""The two kernels of `feed_forward.py`: a product that ends with GELU, and one whose operand a convolution makes.

Shape letters: `B` batch, `C` channels, `F` channels of the wide map, `H W` feature map. Memory is `(B, H, W, C)`.
"""

import triton
import triton.language as tl

from .stencil import activate, load_taps, locate_strip, token_offset
from .windows import load_parameter, load_rows, store_rows


@triton.jit
def widen_kernel(
    tokens_ptr,
    weight_ptr,
    bias_ptr,
    activated_ptr,
    before_ptr,
    num_tokens,
    C: tl.constexpr,
    F: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Multiply tokens with the weight `(F, C)`, add the bias and activate; `KEEPS` writes what comes before GELU."""
    # the programs of some tokens are neighbours, which find them in the cache
    channel_blocks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    token = (tl.program_id(0) // channel_blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    wide_channel = tl.program_id(0) % channel_blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    sums = tl.zeros((BLOCK_T, BLOCK_F), tl.float32)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        tokens = load_rows(tokens_ptr, token, token < num_tokens, channel, C)  # (BLOCK_T, BLOCK_C)
        weight = load_rows(weight_ptr, wide_channel, wide_channel < F, channel, C)  # (BLOCK_F, BLOCK_C)
        sums = tl.dot(tokens, tl.trans(weight), sums, input_precision="tf32x3")
    if HAS_BIAS:
        sums += load_parameter(bias_ptr, wide_channel, F)[None, :]
    # rounded first, so that backward, which reads it, sees the same
    before = sums.to(activated_ptr.dtype.element_ty)
    if KEEPS:
        store_rows(before_ptr, token, token < num_tokens, wide_channel, before, F)
    activated, _ = activate(before.to(tl.float32), "gelu")
    store_rows(activated_ptr, token, token < num_tokens, wide_channel, activated, F)


@triton.jit
def load_row_of_tokens(pointer, image, y, x, channel, H, W, C: tl.constexpr):
    """Load channels of tokens in a row in float32, `(len(x), len(channel))`, zeros outside of the image."""
    offset, is_there = token_offset(image, y, x, H, W, C)
    mask = is_there[:, None] & (channel < C)[None, :]
    return tl.load(pointer + offset[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_taps(sums, before, here, after, tap_before, tap_here, tap_after):
    """Add three tokens of a row, times their taps, one after the other, each in one instruction."""
    sums += before * tap_before[None, :]
    sums += here * tap_here[None, :]
    return sums + after * tap_after[None, :]


@triton.jit
def stack_rows(rows, COLUMNS: tl.constexpr, BLOCK_F: tl.constexpr):
    """Stack eight tiles `(COLUMNS, BLOCK_F)` to one, `(8 * COLUMNS, BLOCK_F)`."""
    first = tl.join(tl.join(rows[0], rows[1]), tl.join(rows[2], rows[3]))
    second = tl.join(tl.join(rows[4], rows[5]), tl.join(rows[6], rows[7]))
    # the last axes are the lowest bit of the row, the next one, and the highest
    return tl.reshape(tl.permute(tl.join(first, second), (4, 3, 2, 0, 1)), (8 * COLUMNS, BLOCK_F))


@triton.jit
def convolve_tile(
    wide_ptr,
    taps_ptr,
    bias_ptr,
    image,
    top,
    left,
    channel,
    H,
    W,
    F: tl.constexpr,
    SHORTCUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Return channels of eight convolved rows of tokens, `(8 * COLUMNS, BLOCK_F)`, in the dtype of the map.

    The rows are loaded one after the other, each a column to the left and to the right too, and added to the three
    rows of results that they concern.
    """
    x = left + tl.arange(0, COLUMNS)
    taps = load_taps(taps_ptr, channel, F, SHORTCUT)
    nothing = tl.zeros((COLUMNS, BLOCK_F), tl.float32)
    if HAS_BIAS:
        nothing += load_parameter(bias_ptr, channel, F)[None, :]
    # a row of tokens ends a row of results, goes on with the next, and begins a third
    ending = nothing
    middle = nothing
    rows: tl.tuple = ()
    for row in tl.static_range(10):
        y = top + row - 1
        before = load_row_of_tokens(wide_ptr, image, y, x - 1, channel, H, W, F)
        here = load_row_of_tokens(wide_ptr, image, y, x, channel, H, W, F)
        after = load_row_of_tokens(wide_ptr, image, y, x + 1, channel, H, W, F)
        if row >= 2:
            rows += (add_taps(ending, before, here, after, taps[6], taps[7], taps[8]),)
        ending = middle
        if row >= 1:
            ending = add_taps(ending, before, here, after, taps[3], taps[4], taps[5])
        middle = add_taps(nothing, before, here, after, taps[0], taps[1], taps[2])
    return stack_rows(rows, COLUMNS, BLOCK_F).to(wide_ptr.dtype.element_ty)


@triton.jit
def narrow_kernel(
    wide_ptr,
    taps_ptr,
    taps_bias_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    factors_ptr,
    residual_ptr,
    outputs_ptr,
    H,
    W,
    C: tl.constexpr,
    F: tl.constexpr,
    SHORTCUT: tl.constexpr,
    HAS_TAPS_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_FACTORS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Convolve a tile of tokens, some wide channels after the other, and multiply it with the weight `(C, F)`.

    `NUM_BLOCKS` blocks of the product's channels come from one operand.
    """
    image, top, left = locate_strip(tl.program_id(0), H, W, 8, COLUMNS)
    first_channel = tl.program_id(1) * NUM_BLOCKS * BLOCK_C
    sums: tl.tuple = ()
    for _ in tl.static_range(NUM_BLOCKS):
        sums += (tl.zeros((8 * COLUMNS, BLOCK_C), tl.float32),)
    for start in range(0, F, BLOCK_F):
        wide_channel = start + tl.arange(0, BLOCK_F)
        operand = convolve_tile(
            wide_ptr,
            taps_ptr,
            taps_bias_ptr,
            image,
            top,
            left,
            wide_channel,
            H,
            W,
            F,
            SHORTCUT,
            HAS_TAPS_BIAS,
            COLUMNS,
            BLOCK_F,
        )
        new_sums: tl.tuple = ()
        for block in tl.static_range(NUM_BLOCKS):
            channel = first_channel + block * BLOCK_C + tl.arange(0, BLOCK_C)
            weight = load_rows(weight_ptr, channel, channel < C, wide_channel, F)  # (BLOCK_C, BLOCK_F)
            new_sums += (tl.dot(operand, tl.trans(weight), sums[block], input_precision="tf32x3"),)
        sums = new_sums
    place = tl.arange(0, 8 * COLUMNS)
    offset, is_there = token_offset(image, top + place // COLUMNS, left + place % COLUMNS, H, W, 1)
    for block in tl.static_range(NUM_BLOCKS):
        channel = first_channel + block * BLOCK_C + tl.arange(0, BLOCK_C)
        result = sums[block]
        if HAS_BIAS:
            result += load_parameter(bias_ptr, channel, C)[None, :]
        if HAS_SCALE:
            result *= load_parameter(scale_ptr, channel, C)[None, :]
        if HAS_FACTORS:
            result *= tl.load(factors_ptr + image).to(tl.float32)
        if HAS_RESIDUAL:
            result += load_rows(residual_ptr, offset, is_there, channel, C).to(tl.float32)
        store_rows(outputs_ptr, offset, is_there, channel, result, C)
