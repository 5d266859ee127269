# SPDX-License-Identifier: Apache-2.0
"""Kernels for the depthwise convolution with its shortcut against PyTorch's own operators, forward and backward.

Without a GPU they run in Triton's interpreter, on shapes that it can manage.
"""

import pytest
import torch
from kernel_comparison import DTYPES, IMPLEMENTATION, OperatorRecorder, cases_of, long_batch, relative_error, tensor_of
from tiny import tiny_config
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from svit_hf import SViTModel
from svit_hf.inference import fold_for_inference
from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTConvFFN, SViTDepthwiseResidual


pytest.importorskip("triton")

# relative to float64, of float32: worst case measured in the interpreter over the comparisons of this file 9.6e-8
FLOAT32_TOLERANCE = 5e-6
# relative to float64, of half precision, in its machine epsilons: worst case measured likewise 0.76
HALF_TOLERANCE_EPSILONS = 2

# batch, channels, height, width, activation, shortcut: what is divided into strips or blocks, in one way each
SMALL = [
    pytest.param((2, 3, 8, 2), "gelu", True, id="two-strips-of-rows"),
    pytest.param((1, 2, 1, 17), "none", True, id="two-strips-of-columns"),
    pytest.param((1, 66, 2, 2), "gelu", False, id="two-blocks-of-channels"),
    pytest.param((1, 4, 5, 1), "none", False, id="one-wide"),
    pytest.param((1, 1, 1, 1), "gelu", True, id="one-token"),
]
REAL = [
    pytest.param((8, 256, 56, 56), "gelu", True, id="B8-C256-56x56"),
    pytest.param((8, 320, 14, 14), "none", True, id="B8-C320-14x14"),
    pytest.param((2, 384, 97, 61), "gelu", False, id="B2-C384-97x61"),
    pytest.param((64, 2048, 7, 7), "gelu", True, id="B64-C2048-7x7"),
    pytest.param((300, 100, 24, 48), "none", False, id="B300-C100-24x48"),
]


def arguments_of(device, shape, dtype=torch.float32):
    """Return hidden states, weight and bias."""
    channels = shape[1]
    shapes = shape, (channels, 1, 3, 3), (channels,)
    return [tensor_of(device, *each, dtype=dtype) for each in shapes]


def eager(hidden_states, weight, bias, activation, shortcut):
    if activation == "gelu":
        hidden_states = F.gelu(hidden_states)
    convolved = F.conv2d(hidden_states, weight, bias, padding=1, groups=len(weight))
    return hidden_states + convolved if shortcut else convolved


def run_and_differentiate(function, arguments, activation, shortcut, direction=None):
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    output = function(*arguments, activation, shortcut)
    if direction is None:
        direction = tensor_of(output.device, *output.shape).to(output.dtype)
    gradients = torch.autograd.grad(output, arguments, direction)
    return dict(zip(("output", "input", "weight", "bias"), (output.detach(), *gradients), strict=True))


@IMPLEMENTATION
class TestAgainstEager:
    def check(self, device, shape, activation, shortcut, kernels, dtype):
        arguments = arguments_of(device, shape, dtype)
        actual = run_and_differentiate(kernels.depthwise_residual, arguments, activation, shortcut)
        reference = [argument.double() for argument in arguments]
        direction = tensor_of(device, *shape, dtype=dtype).double()
        expected = run_and_differentiate(eager, reference, activation, shortcut, direction)
        tolerance = FLOAT32_TOLERANCE
        if dtype != torch.float32:
            tolerance = HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps
        assert {tensor.dtype for tensor in actual.values()} == {dtype}
        assert actual["output"].is_contiguous(memory_format=torch.channels_last)
        errors = {name: relative_error(actual[name], expected[name]) for name in actual}
        assert {name: error for name, error in errors.items() if not error < tolerance} == {}

    @cases_of(SMALL, REAL)
    def test_forward_and_backward(self, device, case, kernels, dtype):
        self.check(device, *case, kernels, dtype)

    def test_programs_that_sum_over_several_strips(self, device, kernels, monkeypatch):
        from svit_hf.kernels.triton import depthwise

        monkeypatch.setattr(depthwise, "MAX_SUMMING_PROGRAMS", 2)
        self.check(device, (5, 2, 2, 1), "gelu", True, kernels, torch.float32)


@IMPLEMENTATION
class TestOperator:
    def test_needs_no_bias(self, device, kernels):
        hidden_states, weight, _ = arguments_of(device, (1, 3, 2, 2))
        results = []
        for function in (kernels.depthwise_residual, eager):
            hidden_states, weight = (tensor.detach().requires_grad_() for tensor in (hidden_states, weight))
            output = function(hidden_states, weight, None, "gelu", True)
            results.append((output, *torch.autograd.grad(output.square().sum(), (hidden_states, weight))))
        torch.testing.assert_close(*results)

    def test_same_result_in_every_run_and_layout(self, device, kernels):
        hidden_states, weight, bias = arguments_of(device, (2, 6, 3, 4))
        direction = tensor_of(device, 6, 1, 1).expand(2, 6, 3, 4)
        layouts = [
            lambda tensor: tensor,
            lambda tensor: tensor,
            lambda tensor: tensor.contiguous(),
            lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
            lambda tensor: tensor.mT.contiguous().mT,
        ]
        first, *others = [
            run_and_differentiate(
                kernels.depthwise_residual, (layout(hidden_states), weight, bias), "gelu", True, layout(direction)
            )
            for layout in layouts
        ]
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)

    def test_keeps_the_map_before_gelu_alone(self, device, kernels):
        hidden_states, weight, bias = (tensor.requires_grad_() for tensor in arguments_of(device, (1, 3, 2, 2)))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: None):
            kernels.depthwise_residual(hidden_states, weight, bias, "gelu", True)
        assert kept == [hidden_states.data_ptr(), weight.data_ptr()]

    def test_second_derivative_is_an_error_rather_than_wrong(self, device, kernels):
        arguments = [tensor.requires_grad_() for tensor in arguments_of(device, (1, 2, 2, 2))]
        output = kernels.depthwise_residual(*arguments, "gelu", True)
        (gradient,) = torch.autograd.grad(output.sum(), arguments[0], create_graph=True)
        with pytest.raises(RuntimeError, match=r"depthwise_residual_backward.* no autograd formula was registered"):
            torch.autograd.grad(gradient.sum(), arguments[0])

    def test_bad_arguments_are_named(self, device, kernels):
        hidden_states, weight, bias = arguments_of(device, (1, 2, 2, 2))
        with pytest.raises(ValueError, match="`activation` is 'tanh'; allowed are none, gelu"):
            kernels.depthwise_residual(hidden_states, weight, bias, "tanh", True)
        with pytest.raises(ValueError, match=r"`weight` has shape \(1, 1, 3, 3\); for 2 channels .* \(2, 1, 3, 3\)"):
            kernels.depthwise_residual(hidden_states, weight[:1], bias, "none", True)

    @pytest.mark.slow
    def test_is_registered_in_full(self, device, kernels):
        # schema, fake implementation, autograd, and both of them in a traced program of any size
        hidden_states, weight, bias = arguments_of(device, (1, 2, 2, 3))
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden_states, weight, bias)]
        torch.library.opcheck(kernels.depthwise_residual, (*inputs, "gelu", True))
        torch.library.opcheck(
            kernels.depthwise_residual_backward, (hidden_states, hidden_states, weight, "none", False)
        )


@IMPLEMENTATION
class TestModule:
    def residual(self, device, implementation, has_shortcut=True):
        residual = SViTDepthwiseResidual(4).to(device)
        residual.has_shortcut = has_shortcut
        use_kernels(residual, implementation)
        return residual

    def feed_forward(self, device, implementation, **config):
        feed_forward = SViTConvFFN(tiny_config(mlp_ratio=2.0, **config), 3).to(device)
        use_kernels(feed_forward, implementation)
        return feed_forward

    def names_of(self, module, *inputs):
        with OperatorRecorder() as operators, torch.no_grad():
            module(*inputs)
        return operators.names

    @pytest.mark.parametrize(("hidden_act", "is_in_kernel"), [("gelu", True), ("gelu_pytorch_tanh", False)])
    def test_kernel_takes_the_exact_gelu_of_the_feed_forward(self, device, implementation, hidden_act, is_in_kernel):
        feed_forward = self.feed_forward(device, implementation, hidden_act=hidden_act)
        tokens = tensor_of(device, 1, 3, 2, 2)
        names = self.names_of(feed_forward, tokens)
        assert f"svit_hf_{implementation}.depthwise_residual" in names
        assert ("aten.gelu" not in names) == is_in_kernel
        actual = feed_forward(tokens)
        use_kernels(feed_forward, None)
        torch.testing.assert_close(actual, feed_forward(tokens))

    def test_what_is_hung_on_the_convolution_or_gelu_is_not_left_out(self, device, implementation):
        residual = self.residual(device, implementation)
        feed_forward = self.feed_forward(device, implementation)
        seen = []
        residual.convolution.register_forward_hook(lambda *_: seen.append("convolution"))
        feed_forward.activation.register_forward_hook(lambda *_: seen.append("activation"))
        tokens = tensor_of(device, 1, 4, 2, 2)
        residual(tokens)
        feed_forward(tokens[:, :3])
        assert seen == ["convolution", "activation"]
        replaced = self.residual(device, implementation)
        replaced.convolution.forward = torch.zeros_like
        torch.testing.assert_close(replaced(tokens), tokens, rtol=0, atol=0)

    @pytest.mark.parametrize("has_shortcut", [True, False])
    @DTYPES
    def test_dtypes_under_autocast_are_those_of_pytorch(self, device, implementation, has_shortcut, dtype):
        residual = self.residual(device, implementation, has_shortcut)
        results = {}
        for name in (None, implementation):
            use_kernels(residual, name)
            residual.zero_grad()
            tokens = tensor_of(device, 1, 4, 2, 2, dtype=dtype).requires_grad_()
            with torch.autocast(device.type, torch.bfloat16):
                output = residual(tokens)
            output.float().sum().backward()
            gradients = [tokens.grad, *(parameter.grad for parameter in residual.parameters())]
            results[name] = [output.detach(), *gradients]
        tolerance = 2 * torch.finfo(torch.bfloat16).eps
        for actual, expected in zip(results[implementation], results[None], strict=True):
            assert actual.dtype == expected.dtype
            assert relative_error(actual, expected) < tolerance

    @pytest.mark.slow
    def test_folded_model_gives_the_same_outputs(self, device, implementation):
        folded = fold_for_inference(SViTModel(tiny_config(depths=[1, 1, 1, 1])).to(device))
        pixels = torch.randn(1, 3, 36, 20, device=device)
        use_kernels(folded, implementation)
        with OperatorRecorder() as operators, torch.no_grad():
            actual = folded(pixels).last_hidden_state
        assert operators.names.count(f"svit_hf_{implementation}.depthwise_residual") == 8
        use_kernels(folded, None)
        with torch.no_grad():
            torch.testing.assert_close(actual, folded(pixels).last_hidden_state, rtol=1e-4, atol=1e-5)


@IMPLEMENTATION
class TestInPrograms:
    @pytest.fixture
    def feed_forward(self, device, implementation):
        feed_forward = SViTConvFFN(tiny_config(mlp_ratio=2.0), 3).to(device)
        use_kernels(feed_forward, implementation)
        return feed_forward

    @staticmethod
    def run(program, tokens):
        tokens = tokens.clone().requires_grad_()
        output = program(tokens)
        output.square().sum().backward()
        return output.detach(), tokens.grad

    @pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_gradient_checkpointing_changes_nothing(self, device, feed_forward, use_reentrant):
        tokens = tensor_of(device, 1, 3, 2, 2)
        checkpointed = self.run(lambda inputs: checkpoint(feed_forward, inputs, use_reentrant=use_reentrant), tokens)
        torch.testing.assert_close(checkpointed, self.run(feed_forward, tokens), rtol=0, atol=0)

    @pytest.mark.gpu
    def test_cuda_graph_replays(self, device, feed_forward):
        tokens = tensor_of(device, 4, 3, 15, 14)
        replayed = torch.cuda.make_graphed_callables(feed_forward, (tokens.clone().requires_grad_(),))
        torch.testing.assert_close(self.run(replayed, tokens), self.run(feed_forward, tokens))

    @pytest.mark.gpu
    def test_more_than_2_to_the_31_elements(self, device, kernels):
        _, weight, bias = arguments_of(device, (1, 64, 1, 1), torch.bfloat16)
        tokens = long_batch(device)
        output = kernels.depthwise_residual(tokens, weight, bias, "gelu", True)
        alone = kernels.depthwise_residual(tokens[-1:], weight, bias, "gelu", True)
        assert torch.equal(output[-1:], alone)
        del output
        gradients, *_ = kernels.depthwise_residual_backward(tokens, tokens, weight, "gelu", True)
        alone, *_ = kernels.depthwise_residual_backward(tokens[-1:], tokens[-1:], weight, "gelu", True)
        assert torch.equal(gradients[-1:], alone)
