# SPDX-License-Identifier: Apache-2.0
"""LayerNorm inside the sampling kernels, against PyTorch's LayerNorm before PyTorch's sampling in float64.

Without a GPU they run in Triton's interpreter, on shapes that it can manage.
"""

import copy

import kernel_comparison
import pytest
import torch
from kernel_comparison import DTYPES, IMPLEMENTATION, OperatorRecorder, cases_of, long_batch, relative_error, tensor_of
from tiny import tiny_config
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTLayer


pytest.importorskip("triton")

# relative, of float32: worst case measured in the interpreter over `SMALL` 8.0e-7
FLOAT32_TOLERANCE = 5e-6
# of half precision, in its machine epsilons: worst case measured likewise 1.46
HALF_TOLERANCE_EPSILONS = 3

# batch, channels, height, width, cell, iterations, sampler
SMALL = [
    pytest.param(1, 64, 8, 11, (8, 8), 1, "soft_masked", id="B1-C64-8x11-cell8-masked"),
    pytest.param(1, 96, 5, 6, (2, 3), 2, "soft", id="B1-C96-5x6-cell2x3-rounds2"),
    pytest.param(2, 20, 9, 6, (4, 4), 1, "soft", id="B2-C20-9x6-cell4"),
    pytest.param(1, 130, 3, 4, (2, 2), 3, "soft_masked", id="B1-C130-3x4-cell2-rounds3-masked"),
    pytest.param(1, 300, 3, 2, (2, 2), 2, "soft", id="B1-C300-3x2-cell2-rounds2-not-fused"),
]
REAL = [
    pytest.param(8, 64, 56, 56, (8, 8), 1, "soft", id="B8-C64-56x56-cell8"),
    pytest.param(8, 128, 28, 28, (4, 4), 1, "soft", id="B8-C128-28x28-cell4"),
    pytest.param(4, 96, 97, 61, (8, 8), 3, "soft_masked", id="B4-C96-97x61-cell8-rounds3-masked"),
    pytest.param(2, 256, 30, 28, (4, 7), 2, "soft", id="B2-C256-30x28-cell4x7-rounds2"),
]


def norm_of(device, channels, dtype=torch.float32):
    """Return a LayerNorm that has learned something: zeros added before it would not be zeros behind it."""
    norm = nn.LayerNorm(channels, eps=1e-6, device=device, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(1 + tensor_of(device, channels) / 2)
        norm.bias.copy_(tensor_of(device, channels, 1)[:, 0])
    return norm


def attend(tokens, norm, cell_size=(2, 2), num_iterations=1, sampler="soft", implementation="triton"):
    return kernel_comparison.attend(tokens, cell_size, num_iterations, sampler, implementation, norm)


def attend_and_differentiate(tokens, norm, *options):
    tokens = tokens.clone().requires_grad_()
    output, sampled = attend(tokens, norm, *options)
    direction = tensor_of(tokens.device, *output.shape).to(output.dtype)
    gradients = torch.autograd.grad(output, [tokens, *norm.parameters()], direction)
    return {
        "output": output,
        "super tokens": sampled.super_tokens,
        "association": sampled.association,
        **dict(zip(["tokens", "weight", "bias"], gradients, strict=True)),
    }


def sampling_in(names):
    """Return the operators of this project among names, without namespace, but for those of the feed-forward."""
    own = [name.split(".")[1] for name in names if name.startswith("svit_hf")]
    return [name for name in own if not name.startswith(("depthwise", "feed_forward"))]


@IMPLEMENTATION
@cases_of(SMALL, REAL)
def test_forward_and_every_gradient_are_those_of_float64(device, case, implementation, dtype):
    shape, options = case[:4], case[4:]
    # far from zero mean and unit deviation, which would hide that they are not taken out
    tokens = (3 * tensor_of(device, *shape) + 1).to(dtype)
    norm = norm_of(device, shape[1], dtype)
    actual = attend_and_differentiate(tokens, norm, *options, implementation)
    expected = attend_and_differentiate(tokens.double(), copy.deepcopy(norm).double(), *options, None)
    assert {name: actual[name].dtype for name in actual} == dict.fromkeys(actual, dtype) | {
        "association": torch.float32
    }
    assert not actual["association"].requires_grad
    assert actual["output"].is_contiguous(memory_format=torch.channels_last)
    tolerance = FLOAT32_TOLERANCE
    if dtype != torch.float32:
        tolerance = HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps
    errors = {name: relative_error(actual[name], expected[name]) for name in actual}
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}


@IMPLEMENTATION
class TestOperators:
    @pytest.mark.parametrize("channels", [1, 6])
    def test_tokens_without_variance_become_the_bias(self, device, kernels, channels):
        norm = norm_of(device, channels)
        tokens = tensor_of(device, 1, 1, 2, 4).expand(1, channels, 2, 4).clone().requires_grad_()
        super_tokens, *_ = kernels.normalize_and_sample(
            tokens, norm.weight, norm.bias, norm.eps, (2, 2), 1, "soft_masked", torch.float32
        )
        torch.testing.assert_close(super_tokens, norm.bias.view(-1, 1, 1).expand_as(super_tokens))
        gradients = torch.autograd.grad(super_tokens.sum(), [tokens, norm.weight, norm.bias])
        reference = tokens.detach().double().permute(0, 2, 3, 1).requires_grad_()
        normalized = F.layer_norm(reference, (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
        # a sum over super tokens of weighted means is one of tokens where all have the same share
        expected = torch.autograd.grad(normalized.sum() / 4, reference)[0].permute(0, 3, 1, 2)
        # what is divided by the square root of eps is rounding of float32
        torch.testing.assert_close(gradients[0].double(), expected, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(gradients[1], torch.zeros_like(norm.weight), rtol=0, atol=1e-3)
        torch.testing.assert_close(gradients[2], torch.full_like(norm.bias, 2.0))

    @pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no-norm"])
    def test_make_no_gradients_for_association_and_statistics(self, device, implementation, has_norm):
        norm = norm_of(device, 6) if has_norm else nn.Identity()
        output, _ = attend(tensor_of(device, 1, 6, 4, 4).requires_grad_(), norm, implementation=implementation)
        with OperatorRecorder() as operators:
            output.backward(torch.ones_like(output))
        assert not [name for name in operators.names if "zeros" in name]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    @pytest.mark.parametrize("channels", [8, 260], ids=["fused", "not-fused"])
    def test_half_precision_gives_float32_super_tokens_where_asked(self, device, kernels, dtype, channels):
        norm = norm_of(device, channels)
        tokens = tensor_of(device, 1, channels, 3, 3, dtype=dtype).requires_grad_()
        super_tokens, *_ = kernels.normalize_and_sample(
            tokens, norm.weight, norm.bias, norm.eps, (2, 2), 1, "soft", torch.float32
        )
        direction = tensor_of(device, *super_tokens.shape)
        actual = super_tokens, *torch.autograd.grad(super_tokens, [tokens, *norm.parameters()], direction)
        assert [result.dtype for result in actual] == [torch.float32, dtype, torch.float32, torch.float32]
        reference, norm = tokens.detach().double().requires_grad_(), norm.double()
        _, sampled = attend(reference, norm, (2, 2), 1, "soft", None)
        expected = torch.autograd.grad(sampled.super_tokens, [reference, *norm.parameters()], direction.double())
        tolerance = HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps
        for result, wanted in zip(actual, (sampled.super_tokens, *expected), strict=True):
            assert relative_error(result, wanted) < tolerance

    @pytest.mark.slow
    @pytest.mark.parametrize("channels", [3, 257], ids=["fused", "not-fused"])
    def test_are_registered_in_full(self, device, kernels, channels):
        # schema, fake implementation, autograd, and both of them in a traced program of any size
        norm = norm_of(device, channels)
        tokens = tensor_of(device, 1, channels, 3, 2).requires_grad_()
        arguments = tokens, norm.weight, norm.bias, norm.eps, (2, 2), 1, "soft", torch.float32
        torch.library.opcheck(kernels.normalize_and_sample, arguments)
        if channels <= 256:
            with torch.no_grad():
                super_tokens, association, mass, mean, rstd = kernels.normalize_and_sample(*arguments)
            inputs = super_tokens, tokens.detach(), norm.weight.detach(), mean, rstd, association, mass, (2, 2)
            torch.library.opcheck(kernels.differentiate_normalize_and_sample, inputs)

    def test_same_result_in_every_run_and_layout(self, device, implementation):
        tokens, norm = tensor_of(device, 1, 6, 3, 4), norm_of(device, 6)
        layouts = [tokens, tokens, tokens.to(memory_format=torch.channels_last), tokens.mT.contiguous().mT]
        options = (2, 2), 1, "soft", implementation
        first, *others = [attend_and_differentiate(layout, norm, *options) for layout in layouts]
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)

    @DTYPES
    def test_gradients_are_differentiable(self, device, implementation, dtype):
        def differentiate_twice(tokens, norm, implementation):
            inputs = [tokens.clone().requires_grad_(), *norm.parameters()]
            output, _ = attend(inputs[0], norm, implementation=implementation)
            gradients = torch.autograd.grad(output, inputs, tokens, create_graph=True)
            return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)

        tokens, norm = tensor_of(device, 1, 6, 3, 4, dtype=dtype), norm_of(device, 6, dtype)
        actual = differentiate_twice(tokens, norm, implementation)
        expected = differentiate_twice(tokens.double(), copy.deepcopy(norm).double(), None)
        tolerance = 10 * FLOAT32_TOLERANCE if dtype == torch.float32 else 10 * torch.finfo(dtype).eps
        assert [result.dtype for result in actual] == [dtype] * 3
        for result, wanted in zip(actual, expected, strict=True):
            assert relative_error(result, wanted) < tolerance


@IMPLEMENTATION
class TestLayer:
    @pytest.fixture
    def layer(self, device):
        config = tiny_config()
        config._attn_implementation = "sdpa"
        layer = SViTLayer(config, stage=0, drop_path_rate=0.0).to(device)
        layer.attention.norm = norm_of(device, 8)
        return layer

    @staticmethod
    def run(layer, tokens, implementation, compiled=None):
        use_kernels(layer, implementation)
        layer.zero_grad()
        tokens = tokens.clone().requires_grad_()
        output = (layer if compiled is None else compiled)(tokens)
        output.float().square().sum().backward()
        return {"output": output.detach(), "tokens": tokens.grad} | {
            name: parameter.grad.clone() for name, parameter in layer.named_parameters()
        }

    @pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
    def test_gives_the_same_outputs_and_gradients_fused(self, device, layer, implementation, autocast):
        tokens = tensor_of(device, 2, 8, 7, 5)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            expected = self.run(layer, tokens, None)
            with OperatorRecorder() as recorder:
                actual = self.run(layer, tokens, implementation)
        assert sampling_in(recorder.names) == [
            "normalize_and_sample",
            "upsample_tokens",
            "aggregate_tokens",
            "differentiate_normalize_and_sample",
        ]
        tolerance = 4 * torch.finfo(torch.bfloat16).eps if autocast else FLOAT32_TOLERANCE
        assert {name: result.dtype for name, result in actual.items()} == {
            name: result.dtype for name, result in expected.items()
        }
        errors = {name: relative_error(actual[name], expected[name]) for name in actual}
        assert {name: error for name, error in errors.items() if not error < tolerance} == {}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_super_tokens_have_the_dtype_that_layer_norm_gives(self, device, implementation, dtype, monkeypatch):
        # as autocast does it on GPUs; on CPUs LayerNorm keeps bfloat16
        layer_norm = F.layer_norm
        monkeypatch.setattr(F, "layer_norm", lambda tokens, *parameters: layer_norm(tokens.float(), *parameters))
        tokens, norm = tensor_of(device, 1, 8, 3, 3, dtype=dtype), norm_of(device, 8)
        for name in (None, implementation):
            results = attend_and_differentiate(tokens, norm, (2, 2), 1, "soft", name)
            assert results.pop("tokens").dtype == dtype
            assert {result.dtype for result in results.values()} == {torch.float32}

    @pytest.mark.parametrize("watched_by", ["forward", "forward_pre", "full_backward", "full_backward_pre", "all"])
    def test_calls_a_norm_with_hooks(self, device, implementation, watched_by):
        norm, calls = norm_of(device, 8), []
        if watched_by == "all":
            handle = register_module_forward_hook(lambda *arguments: calls.append(arguments[0]))
        else:
            register = getattr(norm, f"register_{watched_by}_hook")
            handle = register(lambda *arguments: calls.append(arguments[0]))
        with OperatorRecorder() as recorder:
            attend_and_differentiate(tensor_of(device, 1, 8, 3, 3), norm, (2, 2), 1, "soft", implementation)
        handle.remove()
        assert calls == [norm]
        assert sampling_in(recorder.names)[0] == "sample_super_tokens"

    @pytest.mark.parametrize("kind", ["subclass", "forward", "no bias", "function"])
    def test_calls_a_norm_of_another_kind(self, device, implementation, kind):
        class Doubled(nn.LayerNorm):
            def forward(self, tokens):
                return 2 * super().forward(tokens)

        norm = {"subclass": Doubled(8), "no bias": nn.LayerNorm(8, bias=False), "function": torch.tanh}.get(
            kind, nn.LayerNorm(8)
        )
        if kind == "forward":
            norm.forward = lambda tokens: tokens + 1
        tokens = tensor_of(device, 1, 8, 3, 3)
        if kind != "function":
            norm.to(device)
        with OperatorRecorder() as recorder:
            actual, _ = attend(tokens, norm, implementation=implementation)
        expected, _ = attend(tokens, norm, implementation=None)
        assert sampling_in(recorder.names) == ["sample_super_tokens", "upsample_tokens"]
        torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_gradient_checkpointing_changes_nothing(self, device, implementation, use_reentrant):
        tokens, norm = tensor_of(device, 1, 8, 3, 3), norm_of(device, 8)

        def run(call):
            norm.zero_grad()
            inputs = tokens.clone().requires_grad_()
            call(lambda inputs: attend(inputs, norm, implementation=implementation)[0], inputs).sum().backward()
            return inputs.grad, norm.weight.grad, norm.bias.grad

        checkpointed = run(lambda program, inputs: checkpoint(program, inputs, use_reentrant=use_reentrant))
        torch.testing.assert_close(checkpointed, run(lambda program, inputs: program(inputs)), rtol=0, atol=0)

    @pytest.mark.slow
    def test_compiled_layer_is_fused_in_one_graph_for_all_sizes(self, device, layer, implementation):
        compiled_nodes = []

        def record(graph, inputs):
            compiled_nodes.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        inputs = [tensor_of(device, 2, 8, *size) for size in [(5, 6), (6, 7)]]
        expected = [self.run(layer, tokens, None) for tokens in inputs]
        backend = aot_autograd(fw_compiler=record, bw_compiler=record)
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for tokens, wanted in zip(inputs, expected, strict=True):
                actual = self.run(layer, tokens, implementation, compiled)
                errors = {name: relative_error(actual[name], wanted[name]) for name in actual}
                assert {name: error for name, error in errors.items() if not error < FLOAT32_TOLERANCE} == {}
        assert sampling_in(compiled_nodes) == [
            "normalize_and_sample",
            "upsample_tokens",
            "aggregate_tokens",
            "differentiate_normalize_and_sample",
        ]

    @pytest.mark.gpu
    def test_cuda_graph_replays(self, device, layer, implementation):
        use_kernels(layer.eval(), implementation)
        tokens = tensor_of(device, 4, 8, 15, 14).requires_grad_()
        replayed = torch.cuda.make_graphed_callables(layer, (tokens.detach().clone().requires_grad_(),))
        torch.testing.assert_close(replayed(tokens), layer(tokens))

    @pytest.mark.gpu
    def test_more_than_2_to_the_31_elements(self, device, implementation):
        tokens = long_batch(device)
        norm = norm_of(device, 64, torch.bfloat16)
        output, _ = attend(tokens.requires_grad_(), norm, (8, 8), implementation=implementation)
        (gradient,) = torch.autograd.grad(output.sum(), tokens)
        alone = tokens[-1:].detach().requires_grad_()
        expected, _ = attend(alone, norm, (8, 8), implementation=implementation)
        assert torch.equal(output[-1:], expected)
        assert torch.equal(gradient[-1:], torch.autograd.grad(expected.sum(), alone)[0])
