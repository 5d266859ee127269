# SPDX-License-Identifier: Apache-2.0
"""The parts that look inside the model: sampling and upsampling alone, and single operators in several ways.

An operator is one entry in `OPERATORS`, a way to compute it one `Variant` there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from scripts.benchmark.contestants import OFFICIAL, SEED, Contestant, Session, check_outputs
from scripts.benchmark.networks import Network
from scripts.benchmark.results import Case
from scripts.benchmark.workloads import FunctionStep
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.forms import EAGER, FORMS, Form
from svit_hf.benchmark.measuring import DTYPES, made_up_images


NCHW = torch.contiguous_format
PATH_FORMS = (OFFICIAL, EAGER, replace(EAGER, name="compiled", compiles=True), FORMS["kernels"])


class _PassOn(nn.Module):
    """Identity in the place of the attention among super tokens."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def _path_of(module: Any, stage: int) -> nn.Module:
    """Take sampling and upsampling of a stage out of ours or the official network, without the attention between."""
    if hasattr(module, "svit"):
        path = module.svit.stages[stage].layers[0].attention
        path.self_attention = _PassOn()
    else:
        path = module.layers[stage].blocks[0].attn
        path.stoken_refine = nn.Identity()
    return path


def measure_super_tokens(network: Network, session: Session, *, batch_size: int, image_size: int) -> list[Case]:
    """Measure sampling and upsampling alone, in each stage whose cell is larger than 1.

    In training, forward and backward with respect to the tokens; these are in the dtype itself, without autocast.

    Raises:
        GateError: If the results of a contestant are wrong.
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
class Variant:
    """Way to compute an operator.

    Attributes:
        name: As in tables.
        function: Takes the operator's inputs.
        memory_format: Of the inputs with four dimensions.
        needs_gpu: Whether it is left out on CPUs.
    """

    name: str
    function: Callable[..., torch.Tensor]
    memory_format: torch.memory_format = torch.channels_last
    needs_gpu: bool = False


@dataclass(frozen=True)
class Operator:
    """Operator at the shapes of one stage.

    Attributes:
        stage: Whose shapes it has, counted from 0.
        inputs: Returns them, in float32, for `(batch_size, channels, num_heads, edge)`.
        operations: The same arguments give the arithmetic, a multiply-accumulate being two.
        variants: The first is what ratios refer to: the official one.
    """

    stage: int
    inputs: Callable[[int, int, int, int], list[torch.Tensor]]
    operations: Callable[[int, int, int, int], int]
    variants: tuple[Variant, ...]


def _depthwise_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    images = torch.randn(batch_size, 4 * channels, edge, edge)
    return [images, torch.randn(4 * channels, 1, 3, 3) / 3, torch.randn(4 * channels)]


def _depthwise_operations(batch_size: int, channels: int, num_heads: int, edge: int) -> int:
    return 2 * 9 * 4 * channels * batch_size * edge**2


def _depthwise(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return images + F.conv2d(images, weight, bias, padding=1, groups=images.shape[1])


def _depthwise_with_shortcut_in_kernel(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centre = F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
    return F.conv2d(images, weight + centre, bias, padding=1, groups=images.shape[1])


def _gelu_and_depthwise(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return _depthwise(F.gelu(images), weight, bias)


def triton_operators() -> Any:
    """Return the namespace of the Triton operators."""
    from svit_hf.kernels import triton

    triton.load()
    return torch.ops.svit_hf_triton


def _depthwise_in_triton(activation: str) -> Callable[..., torch.Tensor]:
    return lambda images, *weights: triton_operators().depthwise_residual(images, *weights, activation, True)


def _norm_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    return [torch.randn(batch_size, channels, edge, edge), torch.rand(channels) + 0.5, torch.randn(channels)]


def _layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1)
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2)


def _copying_layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1).contiguous()
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2).contiguous()


def _pointwise_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    weight = torch.randn(4 * channels, channels, 1, 1) * channels**-0.5
    return [torch.randn(batch_size, channels, edge, edge), weight, torch.randn(4 * channels)]


def _linear(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _attention_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    return [torch.randn(batch_size, num_heads, edge * edge, channels // num_heads) for _ in range(3)]


def _attention_with_weights(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1) @ value


OPERATORS = {
    "depthwise 3x3 with shortcut": Operator(
        0,
        _depthwise_inputs,
        _depthwise_operations,
        (
            Variant("NCHW", _depthwise, NCHW),
            Variant("channels_last", _depthwise),
            Variant("channels_last, shortcut in the centre tap", _depthwise_with_shortcut_in_kernel),
            Variant("triton", _depthwise_in_triton("none"), needs_gpu=True),
        ),
    ),
    "GELU and depthwise 3x3 with shortcut": Operator(
        0,
        _depthwise_inputs,
        _depthwise_operations,
        (
            Variant("NCHW", _gelu_and_depthwise, NCHW),
            Variant("channels_last", _gelu_and_depthwise),
            Variant("triton", _depthwise_in_triton("gelu"), needs_gpu=True),
        ),
    ),
    "layer norm over channels": Operator(
        0,
        _norm_inputs,
        lambda batch_size, channels, num_heads, edge: 8 * channels * batch_size * edge**2,
        (Variant("NCHW, two copies", _copying_layer_norm, NCHW), Variant("channels_last", _layer_norm)),
    ),
    "1x1 convolution to 4 times the channels": Operator(
        0,
        _pointwise_inputs,
        lambda batch_size, channels, num_heads, edge: 2 * 4 * channels**2 * batch_size * edge**2,
        (
            Variant("NCHW convolution", F.conv2d, NCHW),
            Variant("channels_last convolution", F.conv2d),
            Variant("channels_last linear", _linear),
        ),
    ),
    "attention among all tokens": Operator(
        2,
        _attention_inputs,
        lambda batch_size, channels, num_heads, edge: 4 * channels * batch_size * edge**4,
        (
            Variant("explicit weights", _attention_with_weights, NCHW),
            Variant("fused", F.scaled_dot_product_attention, NCHW),
        ),
    ),
}


def measure_operators(network: Network, session: Session, *, batch_size: int, image_size: int) -> list[Case]:
    """Measure single operators at the shapes that they have in a model.

    In training, forward and backward with respect to all inputs, weights included.

    Raises:
        GateError: If the results of a variant are wrong.
    """
    config, does_backward = network.config, session.task == "training"
    cases = []
    for name, operator in OPERATORS.items():
        torch.manual_seed(SEED)
        stage = min(operator.stage, config.num_stages - 1)
        edge = edge_of(image_size, stage)
        shape = batch_size, config.hidden_sizes[stage], config.num_attention_heads[stage], edge
        inputs = [tensor.to(session.device) for tensor in operator.inputs(*shape)]
        expected = FunctionStep(operator.variants[0].function, inputs, does_backward).outputs()
        num_read, num_written = sum(tensor.numel() for tensor in inputs), expected["results"].numel()
        # backward reads the inputs and the gradient of the result, and writes the gradients of the inputs
        num_moved = 3 * num_read + 2 * num_written if does_backward else num_read + num_written
        contestants = []
        for dtype in session.dtypes:
            for variant in operator.variants:
                if variant.needs_gpu and session.device.type != "cuda":
                    continue
                given = [_laid_out(tensor.to(DTYPES[dtype]), variant.memory_format) for tensor in inputs]
                work = FunctionStep(variant.function, given, does_backward)
                contestants.append(
                    Contestant(
                        variant.name,
                        dtype,
                        work,
                        check_outputs(f"{name}, {variant.name}", dtype, work.outputs(), expected),
                        operations=operator.operations(*shape) * (3 if does_backward else 1),
                        moved_bytes=num_moved * DTYPES[dtype].itemsize,
                    )
                )
        title = f"{name}: {_shape(inputs[0])}"
        cases.append(_measure(contestants, session, "operators", title, batch_size, image_size))
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
