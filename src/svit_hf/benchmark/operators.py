# SPDX-License-Identifier: Apache-2.0
"""The parts that look inside the model: sampling and upsampling alone, and single operators in several ways.

An operator is one entry in `OPERATORS`, a way to compute it one `Variant` there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.contestants import SEED, Contestant, Session
from svit_hf.benchmark.forms import PATH_FORMS, SVIT_REFERENCE, Form, Situation
from svit_hf.benchmark.gate import check_outputs
from svit_hf.benchmark.machine import DTYPES
from svit_hf.benchmark.networks import SViTNetwork, made_up_images
from svit_hf.benchmark.results import Case, Cost
from svit_hf.benchmark.workloads import FunctionStep
from svit_hf.kernels import resolve
from svit_hf.model.configuration_svit import SViTConfig


class _PassOn(nn.Module):
    """Stand where the attention among super tokens was."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def _path_of(module: nn.Module, stage: int) -> nn.Module:
    """Take sampling and upsampling of a stage out of ours or the official network, without the attention between."""
    parts: Any = module
    if hasattr(module, "svit"):
        path = parts.svit.stages[stage].layers[0].attention
        path.self_attention = _PassOn()
    else:
        path = parts.layers[stage].blocks[0].attn
        path.stoken_refine = nn.Identity()
    return path


def measure_super_tokens(
    network: SViTNetwork, situation: Situation, session: Session, *, batch_size: int, image_size: int
) -> list[Case]:
    """Measure sampling and upsampling alone, in each stage whose cell is larger than 1.

    In training, forward and backward with respect to the tokens; these are in the dtype itself, without autocast.

    Raises:
        GateError: If the results of a contestant are wrong.
    """
    torch.manual_seed(SEED)
    model = network.build(image_size).eval()
    as_inference = Situation("inference", situation.device, situation.does_compile, situation.baseline)
    cases = []
    for stage, cell in enumerate(network.config.cell_sizes):
        if cell == (1, 1):
            continue
        edge = _edge(image_size, stage)
        tokens = made_up_images(batch_size, edge, network.config.hidden_sizes[stage]).to(situation.device)

        def step(form: Form, dtype: str, stage: int = stage, tokens: torch.Tensor = tokens) -> FunctionStep:
            path = form.make(model, dtype, as_inference, lambda module: _path_of(module, stage))
            inputs = tokens.to(DTYPES[dtype]).contiguous(memory_format=form.memory_format)
            return FunctionStep(lambda tokens: _first(path(tokens)), [inputs], situation.task == "training")

        expected = step(SVIT_REFERENCE, "fp32").outputs()
        contestants = []
        for dtype in session.dtypes:
            cost = Cost(moved_bytes=_path_bytes(tokens.shape, cell, dtype, situation.task))
            for form in PATH_FORMS:
                if form.applies(dtype, situation):
                    with session.leaving_out(f"super tokens, {form.name}, {dtype}"):
                        work = step(form, dtype)
                        error = check_outputs(form.name, dtype, work.outputs(), expected)
                        contestants.append(Contestant(form.name, dtype, work, cost, error))
        title = (
            f"sampling and upsampling, {network.name} stage {stage + 1}: {_shape(tokens)}, cell {cell[0]}x{cell[1]}"
        )
        session.say(title)
        cases.append(
            session.measure(
                contestants,
                part="super-tokens",
                title=title,
                task=situation.task,
                batch_size=batch_size,
                image_size=image_size,
            )
        )
    return cases


def _path_bytes(shape: torch.Size, cell: tuple[int, int], dtype: str, task: str) -> int:
    """Count the bytes that sampling and upsampling have to read and write at least.

    Forward: tokens are read once, the float32 association is written and read again, super tokens are written and
    read, tokens are written. Backward is the same from the other side, with the association read twice: the gradient
    of the tokens is read, that of the super tokens written and read, that of the tokens written.
    """
    batch_size, channels, height, width = shape
    element = DTYPES[dtype].itemsize
    num_cells = batch_size * -(-height // cell[0]) * -(-width // cell[1])
    tokens = batch_size * channels * height * width * element
    super_tokens = num_cells * channels * element
    association = num_cells * cell[0] * cell[1] * 9 * torch.float32.itemsize
    forward = 2 * (tokens + association + super_tokens)
    return 2 * forward if task == "training" else forward


@dataclass(frozen=True)
class Variant:
    """Say how an operator is computed.

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
    """Say what an operator works on, what it costs, and how it can be computed.

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


def _depthwise_in_triton(activation: str) -> Callable[..., torch.Tensor]:
    def run(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        resolve("triton", images.device, images.dtype)
        result: torch.Tensor = torch.ops.svit_hf_triton.depthwise_residual(images, weight, bias, activation, True)
        return result

    return run


def _norm_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    return [torch.randn(batch_size, channels, edge, edge), torch.rand(channels) + 0.5, torch.randn(channels)]


def _copying_layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1).contiguous()
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2).contiguous()


def _layer_norm(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = images.permute(0, 2, 3, 1)
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, 1e-6).permute(0, 3, 1, 2)


def _pointwise_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    weight = torch.randn(4 * channels, channels, 1, 1) * channels**-0.5
    return [torch.randn(batch_size, channels, edge, edge), weight, torch.randn(4 * channels)]


def _linear(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _attention_inputs(batch_size: int, channels: int, num_heads: int, edge: int) -> list[torch.Tensor]:
    return [torch.randn(batch_size, num_heads, edge * edge, channels // num_heads) for _ in range(3)]


def _attention_with_weights(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


NCHW = torch.contiguous_format

OPERATORS = {
    "depthwise 3x3 with shortcut": Operator(
        stage=0,
        inputs=_depthwise_inputs,
        operations=_depthwise_operations,
        variants=(
            Variant("NCHW", _depthwise, NCHW),
            Variant("channels_last", _depthwise),
            Variant("channels_last, shortcut in the centre tap", _depthwise_with_shortcut_in_kernel),
            Variant("triton", _depthwise_in_triton("none"), needs_gpu=True),
        ),
    ),
    "GELU and depthwise 3x3 with shortcut": Operator(
        stage=0,
        inputs=_depthwise_inputs,
        operations=_depthwise_operations,
        variants=(
            Variant("NCHW", _gelu_and_depthwise, NCHW),
            Variant("channels_last", _gelu_and_depthwise),
            Variant("triton", _depthwise_in_triton("gelu"), needs_gpu=True),
        ),
    ),
    "layer norm over channels": Operator(
        stage=0,
        inputs=_norm_inputs,
        operations=lambda batch_size, channels, num_heads, edge: 8 * channels * batch_size * edge**2,
        variants=(Variant("NCHW, two copies", _copying_layer_norm, NCHW), Variant("channels_last", _layer_norm)),
    ),
    "1x1 convolution to 4 times the channels": Operator(
        stage=0,
        inputs=_pointwise_inputs,
        operations=lambda batch_size, channels, num_heads, edge: 2 * 4 * channels**2 * batch_size * edge**2,
        variants=(
            Variant("NCHW convolution", F.conv2d, NCHW),
            Variant("channels_last convolution", F.conv2d),
            Variant("channels_last linear", _linear),
        ),
    ),
    "attention among all tokens": Operator(
        stage=2,
        inputs=_attention_inputs,
        operations=lambda batch_size, channels, num_heads, edge: 4 * channels * batch_size * edge**4,
        variants=(
            Variant("explicit weights", _attention_with_weights, NCHW),
            Variant("fused", F.scaled_dot_product_attention, NCHW),
        ),
    ),
}


def measure_operators(
    config: SViTConfig, situation: Situation, session: Session, *, batch_size: int, image_size: int
) -> list[Case]:
    """Measure single operators at the shapes that they have in a model.

    In training, forward and backward with respect to all inputs, weights included.

    Raises:
        GateError: If the results of a variant are wrong.
    """
    cases = []
    for name, operator in OPERATORS.items():
        torch.manual_seed(SEED)
        stage = min(operator.stage, config.num_stages - 1)
        shape = batch_size, config.hidden_sizes[stage], config.num_attention_heads[stage], _edge(image_size, stage)
        inputs = [tensor.to(situation.device) for tensor in operator.inputs(*shape)]
        does_backward = situation.task == "training"
        expected = FunctionStep(operator.variants[0].function, inputs, does_backward).outputs()
        num_read = sum(tensor.numel() for tensor in inputs)
        num_written = expected["results"].numel()
        # backward reads the inputs and the gradient of the result, and writes the gradients of the inputs
        num_moved = 3 * num_read + 2 * num_written if does_backward else num_read + num_written
        num_operations = operator.operations(*shape) * (3 if does_backward else 1)
        contestants = []
        for dtype in session.dtypes:
            cost = Cost(operations=num_operations, moved_bytes=num_moved * DTYPES[dtype].itemsize)
            for variant in operator.variants:
                if variant.needs_gpu and situation.device.type != "cuda":
                    continue
                given = [_laid_out(tensor.to(DTYPES[dtype]), variant.memory_format) for tensor in inputs]
                work = FunctionStep(variant.function, given, does_backward)
                error = check_outputs(f"{name}, {variant.name}", dtype, work.outputs(), expected)
                contestants.append(Contestant(variant.name, dtype, work, cost, error))
        title = f"{name}: {_shape(inputs[0])}"
        session.say(title)
        cases.append(
            session.measure(
                contestants,
                part="operators",
                title=title,
                task=situation.task,
                batch_size=batch_size,
                image_size=image_size,
            )
        )
    return cases


def _laid_out(tensor: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor


def _edge(image_size: int, stage: int) -> int:
    """Return the edge of a stage's token grid: the stem divides by 4, each stage after the first by 2, rounded up."""
    return -(-image_size // 2 ** (stage + 2))


def _first(outputs: Any) -> torch.Tensor:
    result: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    return result


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
