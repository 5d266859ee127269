# SPDX-License-Identifier: Apache-2.0
"""What the kernels with a 3x3 stencil share: strips of a feature map, their columns, and GELU.

A program walks through a strip of a few rows from left to right and keeps three columns in registers, each a tuple
with one vector of channels per row. So every token is loaded and activated once for its strip, and not once per tap;
only the rows above and below are shared with the next strips.

Shape letters: `B` batch, `C` channels, `H W` feature map. Memory is dense, `(B, H, W, C)`.
"""

import triton
import triton.language as tl


@triton.jit
def locate_strip(strip, H, W, ROWS, COLUMNS):
    """Return the image, and row and column of the first token, of a strip (counted over all images)."""
    strips_down = (H + ROWS - 1) // ROWS
    strips_across = (W + COLUMNS - 1) // COLUMNS
    image = (strip // (strips_down * strips_across)).to(tl.int64)
    return image, strip // strips_across % strips_down * ROWS, strip % strips_across * COLUMNS


@triton.jit
def token_offset(image, y, x, H, W, C: tl.constexpr):
    """Return the offset of a token's first channel, 64 bits wide, and whether the token is in the image."""
    return ((image * H + y) * W + x) * C, (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def load_token(pointer, image, y, x, channel, H, W, C: tl.constexpr):
    """Load channels of a token in float32, zeros outside of the image."""
    offset, is_there = token_offset(image, y, x, H, W, C)
    return tl.load(pointer + offset + channel, mask=is_there & (channel < C), other=0.0).to(tl.float32)


@triton.jit
def load_column(
    pointer, image, top, x, channel, H, W, C: tl.constexpr, ACTIVATION: tl.constexpr, LENGTH: tl.constexpr
):
    """Load and activate the tokens from `top` down in a column, a tuple; outside of the image they stay zeros."""
    column: tl.tuple = ()
    for row in tl.static_range(LENGTH):
        token, _ = activate(load_token(pointer, image, top + row, x, channel, H, W, C), ACTIVATION)
        column += (token,)
    return column


@triton.jit
def load_taps(weight_ptr, channel, C: tl.constexpr, SHORTCUT: tl.constexpr):
    """Load the weights `(C, 3, 3)` as nine vectors in float32; a shortcut is one more in the centre."""
    taps: tl.tuple = ()
    for tap in tl.static_range(9):
        weight = tl.load(weight_ptr + channel * 9 + tap, mask=channel < C, other=0.0).to(tl.float32)
        if SHORTCUT and tap == 4:
            weight += 1.0
        taps += (weight,)
    return taps


@triton.jit
def activate(token, ACTIVATION: tl.constexpr):
    """Return the activation and its derivative; what a caller leaves unused costs nothing.

    GELU by the tail of the normal distribution, `1 - Phi(t)` for `t >= 0`: a polynomial of `1 / (1 + 0.33 t)` times
    `exp(-t^2 / 2)`, which also serves the derivative. Fitted for this: GELU is at most 1.4e-7 off, 3.5e-7 with the
    rounding of float32. That is 14 instructions where the error function of CUDA takes 39. The form is that of
    formula 7.1.26 of Abramowitz and Stegun.
    """
    slope = tl.full(token.shape, 1.0, tl.float32)
    if ACTIVATION == "gelu":
        distance = tl.abs(token)
        density = tl.exp2(token * (token * -0.7213475204444817))
        # the square of a reciprocal root takes fewer instructions than a quotient
        root = tl.rsqrt(distance * 0.33 + 1.0)
        share = root * root
        tail = share * -0.11000271 + 0.37711188
        tail = tail * share - 0.09362798
        tail = tail * share + 0.20484956
        tail = (tail * share + 0.12166938) * share * density
        slope = tl.where(token < 0.0, tail, 1.0 - tail) + token * density * 0.3989422804014327
        token = tl.maximum(token, 0.0) - distance * tail
    return token, slope
