# SPDX-License-Identifier: Apache-2.0
"""Kernels for sampling and upsampling against PyTorch's own operators and the dense oracle, forward and backward.

Without a GPU they run in Triton's interpreter, on shapes that it can manage.
"""

import copy

import oracle
import pytest
import torch
from kernel_comparison import IMPLEMENTATION, attend, cases_of, long_batch, relative_error, tensor_of
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from svit_hf import SuperTokenAttention
from svit_hf.kernels import use_kernels


pytest.importorskip("triton")

# relative, of float32: worst case measured in the interpreter over the comparisons of this file 4.5e-7
FLOAT32_TOLERANCE = 5e-6
# relative to float32, of half precision, in its machine epsilons: worst case measured likewise 1.05
HALF_TOLERANCE_EPSILONS = 2

# batch, channels, height, width, cell, iterations, sampler
SMALL = [
    pytest.param(1, 64, 8, 20, (8, 8), 1, "soft_masked", id="B1-C64-8x20-cell8-masked"),
    pytest.param(1, 96, 5, 6, (2, 3), 2, "soft", id="B1-C96-5x6-cell2x3-rounds2"),
    pytest.param(2, 20, 9, 6, (4, 4), 1, "soft", id="B2-C20-9x6-cell4"),
    pytest.param(1, 1, 7, 4, (4, 2), 3, "soft", id="B1-C1-7x4-cell4x2-rounds3"),
    pytest.param(1, 300, 3, 2, (2, 2), 2, "soft_masked", id="B1-C300-3x2-cell2-rounds2-masked"),
    pytest.param(1, 5, 3, 3, (16, 16), 1, "soft", id="B1-C5-3x3-one-cell16"),
]
REAL = [
    pytest.param(8, 64, 56, 56, (8, 8), 1, "soft", id="B8-C64-56x56-cell8"),
    pytest.param(8, 128, 28, 28, (4, 4), 1, "soft", id="B8-C128-28x28-cell4"),
    pytest.param(4, 96, 97, 61, (8, 8), 3, "soft_masked", id="B4-C96-97x61-cell8-rounds3-masked"),
    pytest.param(2, 192, 63, 60, (4, 7), 2, "soft", id="B2-C192-63x60-cell4x7-rounds2"),
    pytest.param(2, 512, 24, 24, (2, 2), 1, "soft", id="B2-C512-24x24-cell2"),
]


def attend_and_differentiate(tokens, cell_size, num_iterations, sampler, implementation):
    tokens = tokens.clone().requires_grad_()
    output, sampled = attend(tokens, cell_size, num_iterations, sampler, implementation)
    direction = tensor_of(tokens.device, *output.shape, dtype=output.dtype)
    (gradient,) = torch.autograd.grad(output, tokens, direction)
    return {
        "output": output,
        "super tokens": sampled.super_tokens,
        "association": sampled.association,
        "gradient": gradient,
    }


@IMPLEMENTATION
@cases_of(SMALL, REAL)
def test_forward_and_backward_are_those_of_pytorch(device, case, implementation, dtype):
    *shape, cell_size, num_iterations, sampler = case
    tokens = tensor_of(device, *shape, dtype=dtype)
    actual = attend_and_differentiate(tokens, cell_size, num_iterations, sampler, implementation)
    expected = attend_and_differentiate(tokens.float(), cell_size, num_iterations, sampler, None)
    tolerance = FLOAT32_TOLERANCE
    if dtype != torch.float32:
        tolerance = HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps
    assert actual["association"].dtype == torch.float32
    assert not actual["association"].requires_grad
    assert actual["output"].dtype == actual["super tokens"].dtype == actual["gradient"].dtype == dtype
    assert actual["output"].is_contiguous(memory_format=torch.channels_last)
    # the same precision whatever the dtype of the tokens: they are compared in float32
    assert relative_error(actual["association"], expected["association"]) < FLOAT32_TOLERANCE
    errors = {name: relative_error(actual[name], expected[name]) for name in actual}
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}


@IMPLEMENTATION
class TestOperators:
    def test_upsampling_differentiates_the_super_tokens(self, device, kernels):
        _, association, _ = kernels.sample_super_tokens(tensor_of(device, 1, 6, 7, 5), (4, 2), 1, "soft")
        super_tokens = tensor_of(device, 1, 6, 2, 3).double().requires_grad_()
        direction = tensor_of(device, 1, 6, 7, 5)
        dense = oracle.dense_association(association.double().cpu(), (2, 3), (4, 2))
        expected = oracle.upsample(super_tokens.cpu(), dense, (8, 6))[:, :, :7, :5]
        (expected_gradient,) = torch.autograd.grad(expected, super_tokens, direction.double().cpu())
        super_tokens = super_tokens.detach().float().requires_grad_()
        output = kernels.upsample_tokens(super_tokens, association, (4, 2), (7, 5))
        (gradient,) = torch.autograd.grad(output, super_tokens, direction)
        assert relative_error(output.cpu(), expected) < FLOAT32_TOLERANCE
        assert relative_error(gradient, expected_gradient) < FLOAT32_TOLERANCE

    @pytest.mark.slow
    def test_are_registered_in_full(self, device, kernels):
        # schema, fake implementation, autograd, and both of them in a traced program of any size
        tokens = tensor_of(device, 1, 3, 3, 2).requires_grad_()
        outputs = kernels.sample_super_tokens(tokens, (2, 2), 1, "soft")
        super_tokens, association, mass = (output.detach() for output in outputs)
        super_tokens.requires_grad_()
        torch.library.opcheck(kernels.sample_super_tokens, (tokens, (2, 2), 1, "soft"))
        torch.library.opcheck(kernels.upsample_tokens, (super_tokens, association, (2, 2), (3, 2), mass))
        torch.library.opcheck(kernels.aggregate_tokens, (tokens, association, (2, 2), mass))


@IMPLEMENTATION
class TestNumbers:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_starved_super_token_is_finite(self, device, implementation, dtype):
        # the tokens of the left cell point the way of the right one, which is longer: every one of them goes there
        tokens = torch.full((1, 4, 2, 4), 300.0, dtype=dtype, device=device)
        tokens[..., :2] = 100.0
        results = attend_and_differentiate(tokens, (2, 2), 1, "soft", implementation)
        assert (results["super tokens"][..., 0] == 0).all()
        assert all(result.isfinite().all() for result in results.values())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_nearly_starved_super_token_is_the_mean_of_its_tokens(self, device, implementation, dtype):
        # about 1e-9 of each token, less than float16 can hold
        tokens = torch.full((1, 4, 2, 4), 11.0, dtype=dtype, device=device)
        tokens[..., :2] = 1.0
        tokens[:, :2, :, 0] = 2.0
        results = attend_and_differentiate(tokens, (2, 2), 1, "soft", implementation)
        expected = attend_and_differentiate(tokens.float(), (2, 2), 1, "soft", None)
        left = oracle.dense_association(expected["association"].cpu(), (1, 2), (2, 2)).sum(1)[0, 0]
        assert 1e-12 < left < torch.finfo(torch.float16).smallest_normal
        error = relative_error(results["super tokens"], expected["super tokens"])
        assert error < HALF_TOLERANCE_EPSILONS * torch.finfo(dtype).eps

    def test_large_cell_does_not_overflow(self, device, implementation):
        # 4 cells of 64 tokens: their plain sum is 256 times a token, beyond float16
        tokens = tensor_of(device, 1, 8, 16, 16, dtype=torch.float16).abs() * 400
        output, _ = attend(tokens, (8, 8), 1, "soft", implementation, attend=torch.nn.Identity())
        assert output.isfinite().all()

    def test_same_result_in_every_run_and_layout(self, device, implementation):
        tokens = tensor_of(device, 1, 6, 3, 4)
        layouts = [tokens, tokens, tokens.to(memory_format=torch.channels_last), tokens.mT.contiguous().mT]
        first, *others = [attend_and_differentiate(layout, (2, 2), 1, "soft", implementation) for layout in layouts]
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=0)

    def test_association_is_float32_under_autocast(self, device, implementation):
        attention = SuperTokenAttention(8, 2, cell_size=4).to(device)
        use_kernels(attention, implementation)
        tokens = tensor_of(device, 1, 8, 5, 5)
        plain = attend_and_differentiate(tokens, (4, 4), 1, "soft", implementation)
        with torch.autocast(device.type, torch.bfloat16):
            under_autocast = attend_and_differentiate(tokens, (4, 4), 1, "soft", implementation)
            assert attention(tokens).dtype == torch.bfloat16
        torch.testing.assert_close(under_autocast, plain, rtol=0, atol=0)


@IMPLEMENTATION
class TestInPrograms:
    @pytest.fixture
    def attention(self, device, implementation):
        attention = SuperTokenAttention(8, 2, cell_size=2).to(device)
        use_kernels(attention, implementation)
        return attention

    @staticmethod
    def run(program, tokens):
        tokens = tokens.clone().requires_grad_()
        output = program(tokens)
        output.square().sum().backward()
        return output.detach(), tokens.grad

    def test_one_graph_without_breaks_serves_all_sizes(self, device, attention):
        # what PyTorch makes of the operators in it is compared by `test_are_registered_in_full`
        compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="eager")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in [(3, 4), (5, 7)]:
                tokens = tensor_of(device, 2, 8, *size)
                torch.testing.assert_close(self.run(compiled, tokens), self.run(attention, tokens))

    @pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_gradient_checkpointing_changes_nothing(self, device, attention, use_reentrant):
        tokens = tensor_of(device, 1, 8, 3, 3)
        checkpointed = self.run(lambda inputs: checkpoint(attention, inputs, use_reentrant=use_reentrant), tokens)
        torch.testing.assert_close(checkpointed, self.run(attention, tokens), rtol=0, atol=0)

    def test_data_parallel_training_gets_the_same_gradients(self, device, attention):
        wrapped = copy.deepcopy(attention)
        tokens = tensor_of(device, 1, 8, 3, 3)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            result = self.run(DistributedDataParallel(wrapped), tokens)
        finally:
            torch.distributed.destroy_process_group()
        torch.testing.assert_close(result, self.run(attention, tokens), rtol=0, atol=0)
        for averaged, parameter in zip(wrapped.parameters(), attention.parameters(), strict=True):
            torch.testing.assert_close(averaged.grad, parameter.grad, rtol=0, atol=0)

    @pytest.mark.gpu
    def test_cuda_graph_replays(self, device, attention):
        tokens = tensor_of(device, 4, 8, 15, 14)
        replayed = torch.cuda.make_graphed_callables(attention, (tokens.clone().requires_grad_(),))
        torch.testing.assert_close(self.run(replayed, tokens), self.run(attention, tokens))

    @pytest.mark.gpu
    def test_more_than_2_to_the_31_elements(self, device, implementation):
        tokens = long_batch(device)
        output, _ = attend(tokens, (8, 8), 1, "soft", implementation)
        alone, _ = attend(tokens[-1:], (8, 8), 1, "soft", implementation)
        assert torch.equal(output[-1:], alone)
