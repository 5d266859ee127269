# SPDX-License-Identifier: Apache-2.0
"""The depthwise 3x3 convolution with its shortcut and, if wanted, GELU in front: `a + convolution(a)`, `a = gelu(x)`.

Forward and backward are one kernel each, which reads what it needs and writes what it gives once. GELU lives in
registers alone: what backward needs of it is computed again from `x`. The stencils that the programs walk with are in
`stencil.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import custom_op

from .launch import ceil_div, empty_channels_last, launch
from .stencil import activate, load_column, load_taps, load_token, locate_strip, token_offset


ACTIVATIONS = ("none", "gelu")

# of a strip: tall ones load less for the rows that they share with their neighbours, wide ones less at both ends. Rows
# are unrolled, each number a kernel of its own; feature maps of 224 pixels are multiples of 7. Columns go by threes
ROWS = (7, 4, 2)
MAX_COLUMNS = 15
# of a program, which is one warp: two channels per thread, and a row of them is a line of memory in half precision
MAX_CHANNELS = 64
# that sum the gradients of the taps over their strips: about as many as a large GPU runs at once, and as few as that,
# since their sums are summed again
MAX_SUMMING_PROGRAMS = 2048


@triton.jit
def depthwise_kernel(
    inputs_ptr,
    weight_ptr,
    bias_ptr,
    outputs_ptr,
    H,
    W,
    COLUMNS,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SHORTCUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Convolve a strip, from left to right with three columns in registers."""
    channel_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image, top, left = locate_strip(tl.program_id(0) // channel_blocks, H, W, ROWS, COLUMNS)
    taps = load_taps(weight_ptr, channel, C, SHORTCUT)
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    before = load_column(inputs_ptr, image, top - 1, left - 1, channel, H, W, C, ACTIVATION, ROWS + 2)
    here = load_column(inputs_ptr, image, top - 1, left, channel, H, W, C, ACTIVATION, ROWS + 2)
    # three columns change their roles three times: unrolled, each is back in its registers, and none is moved
    for start in range(left, tl.minimum(left + COLUMNS, W), 3):
        for step in tl.static_range(3):
            x = start + step
            after = load_column(inputs_ptr, image, top - 1, x + 1, channel, H, W, C, ACTIVATION, ROWS + 2)
            for row in tl.static_range(ROWS):
                result = bias
                for down in tl.static_range(3):
                    result += taps[3 * down] * before[row + down]
                    result += taps[3 * down + 1] * here[row + down]
                    result += taps[3 * down + 2] * after[row + down]
                offset, is_there = token_offset(image, top + row, x, H, W, C)
                result = result.to(outputs_ptr.dtype.element_ty)
                tl.store(outputs_ptr + offset + channel, result, mask=is_there & (channel < C))
            before = here
            here = after


@triton.jit
def depthwise_backward_kernel(
    gradients_ptr,
    inputs_ptr,
    weight_ptr,
    input_gradients_ptr,
    partial_sums_ptr,
    num_strips,
    num_partial_sums,
    H,
    W,
    COLUMNS,
    C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SHORTCUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of the inputs on some strips, and sum those of the nine taps and of the bias over them.

    A tap's gradient is a sum over pairs of an output's gradient and an input. Taken by inputs, it needs the same
    window of gradients that the gradient of the input is made of, and each input once, in its place.
    """
    channel_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    channel = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    partial = tl.program_id(0) // channel_blocks
    taps = load_taps(weight_ptr, channel, C, SHORTCUT)
    sums: tl.tuple = ()
    for _ in tl.static_range(10):
        sums += (tl.zeros((BLOCK_C,), tl.float32),)
    for strip in range(partial, num_strips, num_partial_sums):
        image, top, left = locate_strip(strip, H, W, ROWS, COLUMNS)
        before = load_column(gradients_ptr, image, top - 1, left - 1, channel, H, W, C, "none", ROWS + 2)
        here = load_column(gradients_ptr, image, top - 1, left, channel, H, W, C, "none", ROWS + 2)
        # not unrolled: that would spare one instruction of twelve, for a third more registers and thrice the code
        for x in range(left, tl.minimum(left + COLUMNS, W)):
            after = load_column(gradients_ptr, image, top - 1, x + 1, channel, H, W, C, "none", ROWS + 2)
            for row in tl.static_range(ROWS):
                token, slope = activate(load_token(inputs_ptr, image, top + row, x, channel, H, W, C), ACTIVATION)
                # the output that tap (down, across) leads to is as far up and to the left
                window: tl.tuple = ()
                for down in tl.static_range(3):
                    window += (after[row + 2 - down], here[row + 2 - down], before[row + 2 - down])
                result = tl.zeros((BLOCK_C,), tl.float32)
                new_sums: tl.tuple = ()
                for tap in tl.static_range(9):
                    result += taps[tap] * window[tap]
                    new_sums += (sums[tap] + token * window[tap],)
                sums = new_sums + (sums[9] + window[4],)  # noqa: RUF005 - Triton has no unpacking
                offset, is_there = token_offset(image, top + row, x, H, W, C)
                result = (result * slope).to(input_gradients_ptr.dtype.element_ty)
                tl.store(input_gradients_ptr + offset + channel, result, mask=is_there & (channel < C))
            before = here
            here = after
    for index in tl.static_range(10):
        tl.store(partial_sums_ptr + (partial * 10 + index) * C + channel, sums[index], mask=channel < C)


@custom_op("svit_hf_triton::depthwise_residual", mutates_args=())
def depthwise_residual(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, shortcut: bool
) -> torch.Tensor:
    """Compute `a + convolution(a)` for a depthwise 3x3 convolution with a border of zeros, in float32.

    Args:
        hidden_states: Shape `(B, C, H, W)`.
        weight: Shape `(C, 1, 3, 3)`, of any float dtype.
        bias: Shape `(C,)`, or None.
        activation: "none", or "gelu" (with the error function) to get `a` from the hidden states.
        shortcut: Whether `a` is added; without it this is the convolution alone.

    Returns:
        Shape `(B, C, H, W)`, channels_last, dtype of the hidden states.

    Raises:
        ValueError: If the activation or the shape of the weight is another one.
    """
    channels = hidden_states.shape[1]
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` is {activation!r}; allowed are {', '.join(ACTIVATIONS)}.")
    if weight.shape != (channels, 1, 3, 3):
        raise ValueError(
            f"`weight` has shape {tuple(weight.shape)}; for {channels} channels it has to be {(channels, 1, 3, 3)}."
        )
    outputs = empty_channels_last(hidden_states, *hidden_states.shape)
    num_strips, columns, blocks = divide(hidden_states)
    launch(
        depthwise_kernel,
        (num_strips * ceil_div(channels, blocks["BLOCK_C"]),),
        hidden_states.contiguous(memory_format=torch.channels_last),
        weight.contiguous(),
        weight if bias is None else bias.contiguous(),
        outputs,
        *hidden_states.shape[2:],
        columns,
        C=channels,
        ACTIVATION=activation,
        SHORTCUT=shortcut,
        HAS_BIAS=bias is not None,
        **blocks,
        num_warps=1,
    )
    return outputs


@custom_op("svit_hf_triton::depthwise_residual_backward", mutates_args=())
def depthwise_residual_backward(
    gradient: torch.Tensor, hidden_states: torch.Tensor, weight: torch.Tensor, activation: str, shortcut: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate `depthwise_residual`; this itself cannot be differentiated.

    `gradient` is that of the result, `(B, C, H, W)`; the rest as there.

    Returns:
        The gradients of hidden states, weight and bias, each of its shape and dtype; the bias has the weight's dtype.
    """
    channels = hidden_states.shape[1]
    num_strips, columns, blocks = divide(hidden_states)
    channel_blocks = ceil_div(channels, blocks["BLOCK_C"])
    num_partial_sums = min(num_strips, ceil_div(MAX_SUMMING_PROGRAMS, channel_blocks))
    input_gradient = empty_channels_last(hidden_states, *hidden_states.shape)
    partial_sums = torch.empty(num_partial_sums, 10, channels, dtype=torch.float32, device=hidden_states.device)
    launch(
        depthwise_backward_kernel,
        (num_partial_sums * channel_blocks,),
        gradient.contiguous(memory_format=torch.channels_last),
        hidden_states.contiguous(memory_format=torch.channels_last),
        weight.contiguous(),
        input_gradient,
        partial_sums,
        num_strips,
        num_partial_sums,
        *hidden_states.shape[2:],
        columns,
        C=channels,
        ACTIVATION=activation,
        SHORTCUT=shortcut,
        **blocks,
        num_warps=1,
    )
    weight_gradient = partial_sums[:, :9].sum(0).T.contiguous().view(weight.shape)
    return input_gradient, weight_gradient.to(weight.dtype), partial_sums[:, 9].sum(0).to(weight.dtype)


def divide(hidden_states: torch.Tensor) -> tuple[int, int, dict[str, int]]:
    """Divide feature maps into strips; return their number, their columns, and what the kernels are compiled for."""
    batch_size, channels, height, width = hidden_states.shape
    # as few rows as possible are loaded, with those of the neighbours
    rows = min(ROWS, key=lambda rows: ceil_div(height, rows) * (rows + 2))
    strips_across = ceil_div(width, MAX_COLUMNS)
    columns = 3 * ceil_div(width, 3 * strips_across)
    blocks = {"ROWS": rows, "BLOCK_C": min(triton.next_power_of_2(channels), MAX_CHANNELS)}
    return batch_size * ceil_div(height, rows) * ceil_div(width, columns), columns, blocks


@depthwise_residual.register_fake
def _(hidden_states, weight, bias, activation, shortcut):
    return empty_channels_last(hidden_states, *hidden_states.shape)


@depthwise_residual_backward.register_fake
def _(gradient, hidden_states, weight, activation, shortcut):
    input_gradient = empty_channels_last(hidden_states, *hidden_states.shape)
    return input_gradient, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    hidden_states, weight, bias, ctx.activation, ctx.shortcut = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(hidden_states, weight)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    hidden_states, weight = ctx.saved_tensors
    for_input, for_weight, for_bias = depthwise_residual_backward(
        gradient, hidden_states, weight, ctx.activation, ctx.shortcut
    )
    return for_input, for_weight, for_bias if ctx.has_bias else None, None, None


depthwise_residual.register_autograd(_differentiate, setup_context=_keep)
