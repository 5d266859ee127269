# SPDX-License-Identifier: Apache-2.0
"""Kernels for the whole feed-forward, with all that surrounds it in a block, against PyTorch's own operators.

Without a GPU they run in Triton's interpreter, on shapes that it can manage.
"""

import pytest
import torch
from kernel_comparison import DTYPES, IMPLEMENTATION, OperatorRecorder, relative_error, tensor_of
from tiny import tiny_config
from torch.nn import functional as F

from svit_hf.inference import fold_for_inference
from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTLayer


pytest.importorskip("triton")

# relative to float64, of float32: worst case measured in the interpreter over the comparisons of this file 4.7e-7
FLOAT32_TOLERANCE = 5e-6
# relative to float64, of half precision, in its machine epsilons, the wide map being rounded three times on its way:
# worst case measured likewise 1.2
HALF_TOLERANCE_EPSILONS = 4

# batch, channels, height, width, channels of the wide map: what is divided into tiles or blocks, in one way each
SMALL = [
    pytest.param((2, 3, 1, 9, 5), id="two-tiles-across"),
    pytest.param((1, 66, 9, 1, 3), id="two-tiles-down-and-two-blocks-of-the-result"),
    pytest.param((1, 2, 2, 2, 66), id="two-blocks-of-the-wide-map"),
]
REAL = [
    pytest.param((8, 64, 56, 56, 256), id="B8-C64-56x56"),
    pytest.param((64, 320, 14, 14, 1280), id="B64-C320-14x14"),
    pytest.param((3, 512, 7, 11, 2048), id="B3-C512-7x11"),
    pytest.param((1, 100, 97, 61, 400), id="B1-C100-97x61"),
]
NAMES = ("hidden_states", "widen_weight", "widen_bias", "taps", "taps_bias", "narrow_weight", "narrow_bias", "scale")


def arguments_of(device, shape, dtype=torch.float32):
    """Return the tensors that are differentiated, by name, and the factors of the images."""
    batch_size, channels, height, width, wide = shape
    images = batch_size, channels, height, width
    shapes = [images, (wide, channels, 1, 1), (wide,), (wide, 1, 3, 3), (wide,), (channels, wide, 1, 1), (channels,)]
    tensors = [tensor_of(device, *each, dtype=dtype) for each in (*shapes, (channels,), images)]
    tensors[1], tensors[5] = tensors[1] * channels**-0.5, tensors[5] * wide**-0.5
    factors = torch.linspace(0.0, 2.0, batch_size, device=device) if batch_size > 1 else torch.ones(1, device=device)
    return dict(zip((*NAMES, "residual"), tensors, strict=True)), factors


def eager(tensors, factors, shortcut=True):
    hidden_states, widen, widen_bias, taps, taps_bias, narrow, narrow_bias, scale = map(tensors.get, NAMES)
    activated = F.gelu(F.conv2d(hidden_states, widen, widen_bias))
    convolved = F.conv2d(activated, taps, taps_bias, padding=1, groups=len(taps))
    mixed = F.conv2d(activated + convolved if shortcut else convolved, narrow, narrow_bias)
    mixed = mixed if scale is None else mixed * scale.view(-1, 1, 1)
    mixed = mixed if factors is None else mixed * factors.view(-1, 1, 1, 1)
    return mixed if tensors.get("residual") is None else mixed + tensors["residual"]


def fused(kernels, tensors, factors, shortcut=True, keeps=True):
    before_shortcut, after = [tensors.get(name) for name in NAMES[:5]], [tensors.get(name) for name in NAMES[5:]]
    dtype = tensors["hidden_states"].dtype
    return kernels.feed_forward(*before_shortcut, shortcut, *after, factors, tensors.get("residual"), dtype, keeps)


def differentiate(function, tensors, direction):
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    output = function(tensors)
    gradients = torch.autograd.grad(output, list(tensors.values()), direction)
    return {"output": output.detach()} | dict(zip(tensors, gradients, strict=True))


@IMPLEMENTATION
class TestAgainstEager:
    def check(self, device, shape, kernels, dtype, shortcut=True, without=()):
        tensors, factors = arguments_of(device, shape, dtype)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in without}
        factors = None if "factors" in without else factors
        direction = tensor_of(device, *shape[:4], dtype=dtype)
        actual = differentiate(lambda given: fused(kernels, given, factors, shortcut)[0], tensors, direction)
        reference = {name: tensor.double() for name, tensor in tensors.items()}
        expected = differentiate(lambda given: eager(given, factors, shortcut), reference, direction.double())
        tolerance = FLOAT32_TOLERANCE
        if dtype != torch.float32:
            tolerance = HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps
        assert {tensor.dtype for tensor in actual.values()} == {dtype}
        assert actual["output"].is_contiguous(memory_format=torch.channels_last)
        errors = {name: relative_error(actual[name], expected[name]) for name in actual}
        assert {name: error for name, error in errors.items() if not error < tolerance} == {}

    @pytest.mark.parametrize("shape", SMALL)
    def test_forward_and_backward(self, device, shape, kernels):
        self.check(device, shape, kernels, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_half_precision_with_two_blocks_in_a_program(self, device, kernels, dtype, monkeypatch):
        from svit_hf.kernels.triton import feed_forward

        monkeypatch.setattr(feed_forward, "MIN_PROGRAMS", 1)
        self.check(device, (2, 66, 2, 1, 4), kernels, dtype)

    def test_everything_that_can_be_missing(self, device, kernels):
        without = "widen_bias", "taps_bias", "narrow_bias", "scale", "factors", "residual"
        self.check(device, (1, 3, 2, 2, 4), kernels, torch.float32, shortcut=False, without=without)

    @pytest.mark.gpu
    @DTYPES
    @pytest.mark.parametrize("shape", REAL)
    def test_forward_and_backward_at_real_sizes(self, device, shape, kernels, dtype):
        self.check(device, shape, kernels, dtype)


@IMPLEMENTATION
class TestOperator:
    def test_same_bits_in_every_layout_and_whether_or_not_it_keeps(self, device, kernels):
        tensors, factors = arguments_of(device, (2, 3, 2, 3, 4), torch.bfloat16)
        first, kept = fused(kernels, tensors, factors)
        strange = {name: tensor.mT.contiguous().mT if tensor.ndim == 4 else tensor for name, tensor in tensors.items()}
        second, nothing = fused(kernels, strange, factors, keeps=False)
        assert torch.equal(first, second)
        assert (kept.shape, nothing.numel()) == ((2, 4, 2, 3), 0)

    def test_keeps_one_wide_map(self, device, kernels):
        tensors, factors = arguments_of(device, (1, 2, 2, 2, 8))
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
            fused(kernels, tensors, factors)
        needed = [tensor for name, tensor in tensors.items() if name not in ("residual", "widen_bias")]
        assert sum(kept) == sum(tensor.numel() for tensor in [*needed, factors]) + 8 * 2 * 2

    def test_makes_no_gradient_for_the_map_that_it_keeps(self, device, kernels):
        tensors, factors = arguments_of(device, (1, 2, 2, 2, 8))
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        output, _ = fused(kernels, tensors, factors)
        with OperatorRecorder() as operators:
            output.backward(torch.ones_like(output))
        assert not [name for name in operators.names if "zeros" in name]

    def test_errors_say_what_is_wrong(self, device, kernels):
        tensors, factors = arguments_of(device, (1, 2, 1, 1, 3))
        with pytest.raises(ValueError, match=r"`narrow_weight` has shape \(1, 3, 1, 1\).* has to be \(2, 3, 1, 1\)"):
            fused(kernels, tensors | {"narrow_weight": tensors["narrow_weight"][:1]}, factors)
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        with pytest.raises(RuntimeError, match="`keeps` was False"):
            fused(kernels, tensors, factors, keeps=False)[0].sum().backward()
        gradient = torch.autograd.grad(
            fused(kernels, tensors, factors)[0].sum(), tensors["hidden_states"], create_graph=True
        )[0]
        with pytest.raises(RuntimeError, match=r"feed_forward_backward.* no autograd formula was registered"):
            gradient.sum().backward()

    @pytest.mark.slow
    def test_is_registered_in_full(self, device, kernels):
        tensors, factors = arguments_of(device, (1, 2, 1, 2, 3))
        before_shortcut, after = [tensors[name] for name in NAMES[:5]], [tensors[name] for name in NAMES[5:]]
        inputs = (*before_shortcut, True, *after, factors, tensors["residual"], torch.float32, True)
        inputs = tuple(
            each.clone().requires_grad_() if isinstance(each, torch.Tensor) and each is not factors else each
            for each in inputs
        )
        torch.library.opcheck(kernels.feed_forward, inputs)


@IMPLEMENTATION
class TestLayer:
    """A block of the model, whose feed-forward and shortcut are one operator."""

    def layer(self, device, dtype=torch.bfloat16, drop_path_rate=0.5):
        torch.manual_seed(0)
        config = tiny_config(mlp_ratio=2.0, use_layer_scale=[True] * 4, layer_scale_init_value=0.7)
        return SViTLayer(config, 2, drop_path_rate).to(device, dtype)

    def run(self, layer, name, dtype, autocast=False):
        use_kernels(layer, name)
        layer.zero_grad()
        torch.manual_seed(1)
        tokens = tensor_of(layer.mlp.fc1.weight.device, 4, layer.mlp.fc1.in_channels, 2, 2, dtype=dtype)
        tokens = tokens.requires_grad_()
        with (
            torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast),
            OperatorRecorder() as operators,
        ):
            output = layer(tokens)
        output.float().square().sum().backward()
        gradients = {key: parameter.grad for key, parameter in layer.named_parameters() if parameter.grad is not None}
        return {"output": output.detach(), "input": tokens.grad} | gradients, operators.names

    @pytest.mark.parametrize("autocast", [False, True])
    def test_training_is_that_of_pytorch_with_the_same_paths_dropped(self, device, implementation, autocast):
        dtype = torch.float32 if autocast else torch.bfloat16
        layer = self.layer(device, dtype)
        expected, _ = self.run(layer, None, dtype, autocast)
        actual, names = self.run(layer, implementation, dtype, autocast)
        assert f"svit_hf_{implementation}.feed_forward" in names
        assert "aten.gelu" not in names
        assert {name: each.dtype for name, each in actual.items()} == {
            name: each.dtype for name, each in expected.items()
        }
        for name in ("output", "input", "mlp.fc1.weight", "mlp.fc2.weight", "layer_scale2.scale"):
            # both round in bfloat16, at places of their own
            assert relative_error(actual[name], expected[name]) < 0.03, name

    def test_what_is_hung_on_its_parts_is_not_left_out(self, device, implementation):
        seen = []
        for path in ("mlp", "mlp.fc1", "mlp.fc2", "mlp.activation", "mlp.depthwise", "layer_scale2", "drop_path"):
            layer = self.layer(device).eval()
            layer.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
            use_kernels(layer, implementation)
            layer.add_mixed(*[torch.ones(1, layer.mlp.fc1.in_channels, 1, 1, device=device, dtype=torch.bfloat16)] * 2)
            assert seen.pop() == path

    def test_float32_leaves_products_to_pytorch(self, device, implementation):
        layer = self.layer(device, torch.float32).eval()
        _, names = self.run(layer, implementation, torch.float32)
        assert f"svit_hf_{implementation}.feed_forward" not in names
        assert f"svit_hf_{implementation}.depthwise_residual" in names

    @pytest.mark.slow
    def test_folded_model_gives_the_same_outputs(self, device, implementation):
        from svit_hf import SViTModel

        folded = fold_for_inference(SViTModel(tiny_config(depths=[1, 1, 1, 1])).to(device)).bfloat16()
        pixels = torch.randn(1, 3, 36, 20, device=device, dtype=torch.bfloat16)
        results = {}
        for name in (None, implementation):
            use_kernels(folded, name)
            with OperatorRecorder() as operators, torch.no_grad():
                results[name] = folded(pixels).last_hidden_state
        assert operators.names.count(f"svit_hf_{implementation}.feed_forward") == 4
        assert relative_error(results[implementation], results[None]) < 0.03
