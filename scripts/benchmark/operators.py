# SPDX-License-Identifier: Apache-2.0
"""The parts that look inside the model: sampling and upsampling alone, and single operators in several ways.

An operator is one entry in what `operators_of` returns, a way to compute it one entry in its variants.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from scripts.benchmark.contestants import OFFICIAL, SEED, TRAINING_OPERATIONS, Contestant, Session, check_outputs
from scripts.benchmark.networks import Network
from scripts.benchmark.results import Case
from scripts.benchmark.workloads import FunctionStep
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.forms import EAGER, FORMS, Form
from svit_hf.benchmark.measuring import DTYPES, made_up_images
from svit_hf.kernels import triton
from svit_hf.model.configuration_svit import SViTConfig


PATH_FORMS = (OFFICIAL, EAGER, replace(EAGER, name="compiled", compiles=True), FORMS["kernels"])


class _PassOn(nn.Module):
    """Identity in the place of the attention among super tokens."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def _path_of(module: Any, stage: int) -> nn.Module:
    """Take sampling and upsampling of a stage out of ours or the official network, without norm and attention."""
    if hasattr(module, "svit"):
        path = module.svit.stages[stage].layers[0].attention
        path.norm, path.self_attention = nn.Identity(), _PassOn()
    else:
        path = module.layers[stage].blocks[0].attn
        path.stoken_refine = nn.Identity()
    return path


def measure_super_tokens(network: Network, session: Session, *, batch_size: int, image_size: int) -> list[Case]:
    """Measure sampling and upsampling alone, in each stage whose cell is larger than 1.

    In training, forward and backward with respect to the tokens; these are in the dtype itself, without autocast.
    """
    torch.manual_seed(SEED)
    model = network.build(image_size).eval()
    cases = []
    for stage, cell in enumerate(network.config.cell_sizes):
        if cell == (1, 1):
            continue
        tokens = made_up_images(batch_size, edge_of(image_size, stage), network.config.hidden_sizes[stage])
        tokens = tokens.to(session.device)

        def step(form: Form, dtype: str, stage: int = stage, tokens: torch.Tensor = tokens) -> FunctionStep:
            of_path = replace(form, prepare=lambda model: _path_of(form.prepare(model), stage))
            path = of_path.build(model, session.device, DTYPES[dtype])
            inputs = tokens.to(DTYPES[dtype]).contiguous(memory_format=form.memory_format)
            return FunctionStep(lambda tokens: _first(path(tokens)), [inputs], session.task == "training")

        expected = step(EAGER, "fp32").outputs()
        contestants = []
        for dtype in session.dtypes:
            num_bytes = _path_bytes(tokens.shape, cell, dtype, session.task)
            for form in PATH_FORMS:
                if session.takes(form, dtype):
                    with session.leaving_out(f"super tokens, {form.name}, {dtype}"):
                        work = step(form, dtype)
                        error = check_outputs(form.name, dtype, work.outputs(), expected)
                        contestants.append(Contestant(form.name, dtype, work, error, moved_bytes=num_bytes))
        title = (
            f"sampling and upsampling, {network.name} stage {stage + 1}: {_shape(tokens)}, cell {cell[0]}x{cell[1]}"
        )
        cases.append(_measure(contestants, session, "super-tokens", title, batch_size, image_size))
    return cases


def _path_bytes(shape: torch.Size, cell: tuple[int, int], dtype: str, task: str) -> int:
    """Count the bytes that sampling and upsampling have to read and write at least.

    Forward: tokens are read once, the float32 association is written and read again, super tokens are written and
    read, tokens are written. Backward is the same from the other side, with the association read twice.
    """
    batch_size, channels, height, width = shape
    element = DTYPES[dtype].itemsize
    num_cells = batch_size * -(-height // cell[0]) * -(-width // cell[1])
    association = num_cells * cell[0] * cell[1] * 9 * torch.float32.itemsize
    forward = 2 * (batch_size * channels * height * width * element + association + num_cells * channels * element)
    return 2 * forward if task == "training" else forward


@dataclass(frozen=True)
class Operator:
    """Operator at the shapes of one stage; the first of its variants is the official one.

    Variants with NCHW in their names get inputs in that layout, the others in channels_last.
    """

    name: str
    inputs: list[torch.Tensor]
    operations: int
    variants: dict[str, Callable[..., torch.Tensor]]


def operators_of(config: SViTConfig, stage: int, batch_size: int, image_size: int) -> list[Operator]:
    """Return the operators of a stage, counted from 0."""
    edge, channels, heads = edge_of(image_size, stage), config.hidden_sizes[stage], config.num_attention_heads[stage]
    num_tokens, wide = batch_size * edge**2, 4 * channels
    images, hidden = (torch.randn(batch_size, width, edge, edge) for width in (channels, wide))
    taps, bias = torch.randn(wide, 1, 3, 3) / 3, torch.randn(wide)
    weight = torch.randn(wide, channels, 1, 1) * channels**-0.5
    norm = [images, torch.rand(channels) + 0.5, torch.randn(channels)]
    heads_of = [torch.randn(batch_size, heads, edge**2, channels // heads) for _ in range(3)]
    shape = f"stage {stage + 1}, {batch_size}x{channels}x{edge}x{edge}"
    depthwise_operations = 2 * 9 * wide * num_tokens
    operators = [
        Operator(
            f"depthwise 3x3 with shortcut on 4 times the channels: {shape}",
            [hidden, taps, bias],
            depthwise_operations,
            {
                "NCHW": _depthwise,
                "channels_last": _depthwise,
                "channels_last, shortcut in the centre tap": _depthwise_with_shortcut_in_kernel,
                "triton": partial(_depthwise_in_triton, "none"),
            },
        ),
        Operator(
            f"GELU and depthwise 3x3 with shortcut: {shape}",
            [hidden, taps, bias],
            depthwise_operations,
            {
                "NCHW": _gelu_and_depthwise,
                "channels_last": _gelu_and_depthwise,
                "triton": partial(_depthwise_in_triton, "gelu"),
            },
        ),
        Operator(
            f"feed-forward with the shortcut of its block: {shape}",
            [images, weight, bias, taps, bias, weight.view(channels, wide, 1, 1), torch.randn(channels)],
            depthwise_operations + 2 * 2 * channels * wide * num_tokens,
            {"NCHW": _feed_forward, "channels_last": _feed_forward, "triton": _feed_forward_in_triton},
        ),
        Operator(
            f"layer norm over channels: {shape}",
            norm,
            8 * channels * num_tokens,
            {"NCHW, two copies": _copying_layer_norm, "channels_last": _layer_norm},
        ),
        Operator(
            f"1x1 convolution to 4 times the channels: {shape}",
            [images, weight, bias],
            2 * channels * wide * num_tokens,
            {"NCHW convolution": F.conv2d, "channels_last convolution": F.conv2d, "channels_last linear": _linear},
        ),
    ]
    if config.cell_sizes[stage] == (1, 1):
        attention = {"NCHW, explicit weights": _attention_with_weights, "NCHW, fused": F.scaled_dot_product_attention}
        operations = 4 * channels * num_tokens * edge**2
        operators.append(Operator(f"attention among all tokens: {shape}", heads_of, operations, attention))
    return operators


def _depthwise(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return images + F.conv2d(images, weight, bias, padding=1, groups=images.shape[1])


def _depthwise_with_shortcut_in_kernel(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centre = F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
    return F.conv2d(images, weight + centre, bias, padding=1, groups=images.shape[1])


def _depthwise_in_triton(activation: str, *inputs: torch.Tensor) -> torch.Tensor:
    triton.load()
    return torch.ops.svit_hf_triton.depthwise_residual(*inputs, activation, True)


def _gelu_and_depthwise(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return _depthwise(F.gelu(images), weight, bias)


def _feed_forward(images: torch.Tensor, widen: torch.Tensor, widen_bias: torch.Tensor, *rest: Any) -> torch.Tensor:
    taps, taps_bias, narrow, narrow_bias = rest
    mixed = _gelu_and_depthwise(F.conv2d(images, widen, widen_bias), taps, taps_bias)
    return images + F.conv2d(mixed, narrow, narrow_bias)


def _feed_forward_in_triton(images: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    triton.load()
    before_shortcut, after, keeps = parameters[:4], parameters[4:], images.requires_grad
    operator = torch.ops.svit_hf_triton.feed_forward
    return operator(images, *before_shortcut, True, *after, None, None, images, images.dtype, keeps)[0]


def _layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1)
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2)


def _copying_layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1).contiguous()
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2).contiguous()


def _linear(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _attention_with_weights(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1) @ value


def measure_operators(network: Network, session: Session, *, batch_size: int, image_size: int) -> list[Case]:
    """Measure single operators at the shapes that they have in each stage.

    In training, forward and backward with respect to all inputs, weights included.
    """
    torch.manual_seed(SEED)
    does_backward = session.task == "training"
    cases = []
    for stage in range(network.config.num_stages):
        for operator in operators_of(network.config, stage, batch_size, image_size):
            inputs = [tensor.to(session.device) for tensor in operator.inputs]
            expected = FunctionStep(next(iter(operator.variants.values())), inputs, does_backward).outputs()
            num_read, num_written = sum(tensor.numel() for tensor in inputs), expected["results"].numel()
            # backward reads the inputs and the gradient of the result, and writes the gradients of the inputs
            num_moved = 3 * num_read + 2 * num_written if does_backward else num_read + num_written
            contestants = []
            for dtype, (name, function) in product(session.dtypes, operator.variants.items()):
                if name == "triton" and triton.find_obstacle(session.device, DTYPES[dtype], None):
                    continue
                layout = torch.contiguous_format if "NCHW" in name else torch.channels_last
                given = [_laid_out(tensor.to(DTYPES[dtype]), layout) for tensor in inputs]
                work = FunctionStep(function, given, does_backward)
                error = check_outputs(f"{operator.name}, {name}", dtype, work.outputs(), expected)
                cost = {"operations": operator.operations * (TRAINING_OPERATIONS if does_backward else 1)}
                cost["moved_bytes"] = num_moved * DTYPES[dtype].itemsize
                contestants.append(Contestant(name, dtype, work, error, **cost))
            cases.append(_measure(contestants, session, "operators", operator.name, batch_size, image_size))
    return cases


def _measure(
    contestants: list[Contestant], session: Session, part: str, title: str, batch_size: int, image_size: int
) -> Case:
    session.say(title)
    return session.measure(
        contestants, part=part, title=title, task=session.task, batch_size=batch_size, image_size=image_size
    )


def edge_of(image_size: int, stage: int) -> int:
    """Return the edge of a stage's token grid: the stem divides by 4, each stage after the first by 2, rounded up."""
    return -(-image_size // 2 ** (stage + 2))


def _laid_out(tensor: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor


def _first(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
