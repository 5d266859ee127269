# SPDX-License-Identifier: Apache-2.0
"""The convolutional feed-forward: a product that ends with GELU, and one that makes its operand by the convolution.

The map between them, of `F` channels, is written once and read once; what the depthwise convolution makes of it exists
in tiles alone, and so does what comes before the sum with the shortcut of the block. While training, the map before
GELU is written beside it and is all that is kept: backward makes the rest again, and consists of PyTorch's matrix
products and the kernels of `depthwise.py`.

Shape letters: `B` batch, `C` channels, `F` channels of the wide map, `H W` feature map.
"""

from typing import Any

import torch
import triton
from torch.library import custom_op

from .depthwise import depthwise_residual, depthwise_residual_backward
from .feed_forward_kernels import narrow_kernel, widen_kernel
from .launch import MIN_LENGTH, ceil_div, empty_channels_last, launch


# of a tile of tokens, which has 8 rows; columns of 56, as in the first stage at 224 pixels, are multiples of it
COLUMNS = 8
# of the product, 64 channels each, that a program makes of one operand, by the first number of the compute capability.
# Found by compiling: more spill
MAX_BLOCKS = {8: 1, 9: 5}
# that a batch gives at least: with few tokens, every program makes some of the channels
MIN_PROGRAMS = 128


@custom_op("svit_hf_triton::feed_forward", mutates_args=())
def feed_forward(
    hidden_states: torch.Tensor,
    widen_weight: torch.Tensor,
    widen_bias: torch.Tensor | None,
    taps: torch.Tensor,
    taps_bias: torch.Tensor | None,
    shortcut: bool,
    narrow_weight: torch.Tensor,
    narrow_bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    factors: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    keeps: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `residual + factors * scale * narrow(a + convolution(a))` with `a = gelu(widen(hidden_states))`.

    Products are those of the dtype of the hidden states, all sums are float32.

    Args:
        hidden_states: Shape `(B, C, H, W)`.
        widen_weight: Shape `(F, C, 1, 1)`; weights, biases and scale have any float dtype.
        widen_bias: Shape `(F,)`, or None, as all biases.
        taps: Of the depthwise convolution, shape `(F, 1, 3, 3)`, which sees a border of zeros.
        taps_bias: Shape `(F,)`.
        shortcut: Whether `a` is added; without it this is the convolution alone.
        narrow_weight: Shape `(C, F, 1, 1)`.
        narrow_bias: Shape `(C,)`.
        scale: A factor for each channel, shape `(C,)`, or None.
        factors: One for each image, such as drop path gives, float32, shape `(B,)`, or None; not differentiated.
        residual: What the result is added to, shape `(B, C, H, W)`, or None.
        dtype: Of the result.
        keeps: Whether backward shall be possible.

    Returns:
        Shape `(B, C, H, W)`, channels_last; and what backward needs, `(B, F, H, W)` or empty, a constant for autograd.

    Raises:
        ValueError: If the shape of a weight does not fit.
    """
    batch_size, channels, height, width = hidden_states.shape
    wide_channels = len(taps)
    for name, weight, expected in (
        ("widen_weight", widen_weight, (wide_channels, channels, 1, 1)),
        ("taps", taps, (wide_channels, 1, 3, 3)),
        ("narrow_weight", narrow_weight, (channels, wide_channels, 1, 1)),
    ):
        if weight.shape != expected:
            raise ValueError(
                f"`{name}` has shape {tuple(weight.shape)}; for {channels} channels and {wide_channels} of `taps` it "
                f"has to be {expected}."
            )
    activated, before = _widen(hidden_states, widen_weight, widen_bias, keeps)
    outputs = empty_channels_last(hidden_states, *hidden_states.shape, dtype=dtype)
    is_half = hidden_states.dtype != torch.float32
    block_channels = _block(channels, 64 if is_half else 32)
    tiles = batch_size * ceil_div(height, 8) * ceil_div(width, COLUMNS)
    blocks = ceil_div(channels, block_channels)
    programs = max(ceil_div(blocks, _max_blocks(hidden_states)), ceil_div(MIN_PROGRAMS, max(tiles, 1)))
    blocks_of_program = ceil_div(blocks, programs)
    launch(
        narrow_kernel,
        (tiles, ceil_div(blocks, blocks_of_program)),
        activated,
        taps.contiguous(),
        _given(taps_bias, taps),
        narrow_weight.to(hidden_states.dtype).contiguous(),
        _given(narrow_bias, taps),
        _given(scale, taps),
        _given(factors, taps),
        outputs if residual is None else residual.contiguous(memory_format=torch.channels_last),
        outputs,
        height,
        width,
        C=channels,
        F=wide_channels,
        SHORTCUT=shortcut,
        HAS_TAPS_BIAS=taps_bias is not None,
        HAS_BIAS=narrow_bias is not None,
        HAS_SCALE=scale is not None,
        HAS_FACTORS=factors is not None,
        HAS_RESIDUAL=residual is not None,
        COLUMNS=COLUMNS,
        BLOCK_F=_block(wide_channels, 64 if is_half else 16),
        BLOCK_C=block_channels,
        NUM_BLOCKS=blocks_of_program,
        num_warps=4 if blocks_of_program <= 2 else 8,
        # in stages, what the convolution loads would take its way through shared memory
        num_stages=1,
    )
    return outputs, before


def _widen(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the wide map after GELU, and the one before or an empty one, `(B, F, H, W)`."""
    batch_size, channels, height, width = hidden_states.shape
    wide_channels, num_tokens = len(weight), batch_size * height * width
    activated = empty_channels_last(hidden_states, batch_size, wide_channels, height, width)
    before = _empty_before(hidden_states, weight, keeps)
    is_half = hidden_states.dtype != torch.float32
    block = 128 if is_half else 64
    launch(
        widen_kernel,
        (ceil_div(num_tokens, block) * ceil_div(wide_channels, block),),
        hidden_states.contiguous(memory_format=torch.channels_last),
        weight.to(hidden_states.dtype).contiguous(),
        _given(bias, weight),
        activated,
        before,
        num_tokens,
        C=channels,
        F=wide_channels,
        HAS_BIAS=bias is not None,
        KEEPS=keeps,
        BLOCK_T=block,
        BLOCK_C=_block(channels, 64 if is_half else 32),
        BLOCK_F=block,
        num_warps=8 if is_half else 4,
        num_stages=3,
    )
    return activated, before


@custom_op("svit_hf_triton::feed_forward_backward", mutates_args=())
def feed_forward_backward(
    gradient: torch.Tensor,
    hidden_states: torch.Tensor,
    before: torch.Tensor,
    widen_weight: torch.Tensor,
    taps: torch.Tensor,
    taps_bias: torch.Tensor | None,
    shortcut: bool,
    narrow_weight: torch.Tensor,
    narrow_bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    factors: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Differentiate `feed_forward`; this itself cannot be differentiated.

    `gradient` is that of the result, `(B, C, H, W)`, `before` what was returned beside it; the rest as there.

    Returns:
        The gradients of hidden states, `widen_weight` and its bias, taps and theirs, `narrow_weight` and its bias, and
        the scale: each of its shape and dtype, but a bias of that of its weight, and the scale in float32.
    """
    dtype = hidden_states.dtype
    if factors is not None:
        gradient = gradient * factors.view(-1, 1, 1, 1)
    outer = _rows(gradient).float() if scale is not None else _rows(gradient)
    scaled = outer if scale is None else outer * scale
    outer, scaled = outer.to(dtype), scaled.to(dtype)
    narrow, widen = narrow_weight.flatten(1).to(dtype), widen_weight.flatten(1).to(dtype)
    # the operand of the second product is made again, since it was never in memory
    convolved = _rows(depthwise_residual(before, taps, taps_bias, "gelu", shortcut))
    for_narrow = outer.T @ convolved
    for_narrow_bias = outer.sum(0, dtype=torch.float32)
    del convolved
    for_convolved = (scaled @ narrow).view(*_channels_last(before).shape).permute(0, 3, 1, 2)
    for_before, for_taps, for_taps_bias = depthwise_residual_backward(for_convolved, before, taps, "gelu", shortcut)
    del for_convolved
    # the layer scale acts like a factor of the rows of the weight: its gradient needs no map
    for_scale = (for_narrow.float() * narrow).sum(1)
    if narrow_bias is not None:
        for_scale += for_narrow_bias * narrow_bias
    if scale is not None:
        for_narrow, for_narrow_bias = for_narrow * scale[:, None], for_narrow_bias * scale
    wide = _rows(for_before)
    return [
        (wide @ widen).view(*_channels_last(hidden_states).shape).permute(0, 3, 1, 2),
        (wide.T @ _rows(hidden_states)).to(widen_weight.dtype).view(widen_weight.shape),
        wide.sum(0, dtype=torch.float32).to(widen_weight.dtype),
        for_taps,
        for_taps_bias,
        for_narrow.to(narrow_weight.dtype).view(narrow_weight.shape),
        for_narrow_bias.to(narrow_weight.dtype),
        for_scale,
    ]


def _channels_last(feature_map: torch.Tensor) -> torch.Tensor:
    """Return a feature map as dense `(B, H, W, C)`."""
    return feature_map.permute(0, 2, 3, 1).contiguous()


def _rows(feature_map: torch.Tensor) -> torch.Tensor:
    """Return a feature map as tokens, `(B * H * W, C)`."""
    return _channels_last(feature_map).flatten(0, 2)


def _given(parameter: torch.Tensor | None, substitute: torch.Tensor) -> torch.Tensor:
    # kernels do not look at what they are not given, but need an address
    return substitute if parameter is None else parameter.contiguous()


def _block(channels: int, most: int) -> int:
    return min(max(triton.next_power_of_2(channels), MIN_LENGTH), most)


def _max_blocks(hidden_states: torch.Tensor) -> int:
    if hidden_states.dtype == torch.float32:
        return 1
    is_older = hidden_states.is_cuda and torch.cuda.get_device_capability(hidden_states.device)[0] < 9
    return MAX_BLOCKS[8 if is_older else 9]


def _empty_before(hidden_states: torch.Tensor, weight: torch.Tensor, keeps: bool) -> torch.Tensor:
    batch_size, _, height, width = hidden_states.shape
    return empty_channels_last(hidden_states, batch_size if keeps else 0, len(weight), height, width)


@feed_forward.register_fake
def _(
    hidden_states,
    widen_weight,
    widen_bias,
    taps,
    taps_bias,
    shortcut,
    narrow_weight,
    narrow_bias,
    scale,
    factors,
    residual,
    dtype,
    keeps,
):
    outputs = empty_channels_last(hidden_states, *hidden_states.shape, dtype=dtype)
    return outputs, _empty_before(hidden_states, widen_weight, keeps)


@feed_forward_backward.register_fake
def _(
    gradient,
    hidden_states,
    before,
    widen_weight,
    taps,
    taps_bias,
    shortcut,
    narrow_weight,
    narrow_bias,
    scale,
    factors,
):
    parameters = [
        each
        for weight in (widen_weight, taps, narrow_weight)
        for each in (weight.new_empty(weight.shape), weight.new_empty(len(weight)))
    ]
    for_scale = torch.empty(len(narrow_weight), dtype=torch.float32, device=narrow_weight.device)
    return [empty_channels_last(hidden_states, *hidden_states.shape), *parameters, for_scale]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, residual, _, ctx.keeps = inputs
    hidden_states, widen_weight, widen_bias, taps, taps_bias, ctx.shortcut, *rest = tensors
    ctx.has_bias = [bias is not None for bias in (widen_bias, taps_bias, rest[1])]
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.mark_non_differentiable(output[1])
    # PyTorch would make zeros as the gradient of the wide map
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_states, output[1], widen_weight, taps, taps_bias, *rest)


def _differentiate(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    if not ctx.keeps:
        raise RuntimeError("`keeps` was False in `feed_forward`: what its backward pass needs was not kept.")
    *before_shortcut, narrow_weight, narrow_bias, scale, factors = ctx.saved_tensors
    for_hidden_states, *pairs, for_scale = feed_forward_backward(
        gradient, *before_shortcut, ctx.shortcut, narrow_weight, narrow_bias, scale, factors
    )
    for place, has_bias in enumerate(ctx.has_bias):
        if not has_bias:
            pairs[2 * place + 1] = None
    for_residual = None if ctx.residual_dtype is None else gradient.to(ctx.residual_dtype)
    for_scale = None if scale is None else for_scale.to(scale.dtype)
    return for_hidden_states, *pairs[:4], None, *pairs[4:], for_scale, None, for_residual, None, None


feed_forward.register_autograd(_differentiate, setup_context=_keep)
