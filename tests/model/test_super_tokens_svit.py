# SPDX-License-Identifier: Apache-2.0
"""The super-token algorithm against the dense oracle, and the properties that every sampler has."""

from typing import NamedTuple

import oracle
import pytest
import torch

from svit_hf.model.super_tokens_svit import (
    SUPER_TOKEN_SAMPLERS,
    make_learned_sampler,
    sample_super_tokens,
    super_token_attention,
    upsample_tokens,
)


# worst case measured over the comparisons of this file, float32 against the float64 oracle: 2.2e-7
FLOAT32_TOLERANCE = 1e-5


class Grid(NamedTuple):
    """Tokens, `(B, C, H, W)`, and how they are sampled."""

    shape: tuple[int, int, int, int]
    cell_size: tuple[int, int]
    num_iterations: int


GRIDS = [
    pytest.param(Grid((2, 16, 8, 8), (4, 4), 1), id="B2-C16-8x8-cell4"),
    pytest.param(Grid((1, 5, 12, 8), (4, 2), 1), id="B1-C5-12x8-cell4x2"),
    pytest.param(Grid((2, 7, 6, 15), (2, 3), 2), id="B2-C7-6x15-cell2x3-rounds2"),
    pytest.param(Grid((1, 16, 8, 16), (8, 8), 3), id="B1-C16-8x16-cell8-rounds3"),
    pytest.param(Grid((1, 3, 4, 4), (4, 4), 2), id="B1-C3-4x4-single-cell"),
]
# the tokens of a cell may all leave it for a longer vector of the same direction
STARVING = [name for name in oracle.SAMPLERS if name not in ("grid", "random", "cosine", "slots")]


def tokens_of(batch_size, channels, height, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch_size * 1000 + channels * 100 + height * 10 + width)
    return torch.randn(batch_size, channels, height, width, generator=generator).to(dtype)


def sampler_of(name, tokens):
    """Return a sampler; one that learns is constructed, as a layer does it."""
    return make_learned_sampler(name, tokens.shape[1], (2, 2)) or SUPER_TOKEN_SAMPLERS[name]


def mix(super_tokens):
    """Stand in for attention: mixes super tokens over the whole grid, not linearly."""
    return super_tokens.tanh() + super_tokens.mean(dim=(2, 3), keepdim=True) ** 2


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_every_sampler_has_an_oracle():
    assert set(oracle.SAMPLERS) == SUPER_TOKEN_SAMPLERS.keys()


@pytest.mark.parametrize("sampler", oracle.SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS)
class TestSampler:
    def test_matches_oracle(self, sampler, grid):
        tokens = tokens_of(*grid.shape)
        sampled = sampler_of(sampler, tokens)(tokens, grid.cell_size, grid.num_iterations)
        super_tokens, association = oracle.sample(tokens, grid.cell_size, grid.num_iterations, sampler)
        grid_size = sampled.super_tokens.shape[-2:]
        dense = oracle.dense_association(sampled.association, grid_size, grid.cell_size)
        assert relative_error(sampled.super_tokens, super_tokens) < FLOAT32_TOLERANCE
        assert relative_error(dense, association) < FLOAT32_TOLERANCE

    def test_rows_of_association_sum_to_one(self, sampler, grid):
        tokens = tokens_of(*grid.shape)
        association = sampler_of(sampler, tokens)(tokens, grid.cell_size, grid.num_iterations).association
        torch.testing.assert_close(association.sum(-1), torch.ones(association.shape[:-1]))

    def test_constant_grid_gives_that_constant(self, sampler, grid):
        constant = tokens_of(1, grid.shape[1], 1, 1)
        tokens = constant.expand(grid.shape)
        super_tokens = sampler_of(sampler, tokens)(tokens, grid.cell_size, grid.num_iterations).super_tokens
        torch.testing.assert_close(super_tokens, constant.expand_as(super_tokens))

    def test_images_do_not_see_each_other(self, sampler, grid):
        tokens = tokens_of(grid.shape[0] + 1, *grid.shape[1:])
        together = sampler_of(sampler, tokens)(tokens, grid.cell_size, grid.num_iterations)
        alone = sampler_of(sampler, tokens)(tokens.flip(0)[:1], grid.cell_size, grid.num_iterations)
        torch.testing.assert_close(together.super_tokens[-1:], alone.super_tokens)
        torch.testing.assert_close(together.association[-1:], alone.association)

    def test_gradient_matches_oracle(self, sampler, grid):
        tokens = tokens_of(*grid.shape).requires_grad_()
        sampled = sampler_of(sampler, tokens)(tokens, grid.cell_size, grid.num_iterations)
        assert sampled.association.requires_grad == (sampler in oracle.DIFFERENTIABLE)
        weight = torch.randn_like(sampled.super_tokens)
        (gradient,) = torch.autograd.grad((sampled.super_tokens * weight).sum(), tokens)
        reference = tokens.detach().double().requires_grad_()
        super_tokens, _ = oracle.sample(reference, grid.cell_size, grid.num_iterations, sampler)
        (expected,) = torch.autograd.grad((super_tokens * weight).sum(), reference)
        assert relative_error(gradient, expected) < FLOAT32_TOLERANCE

    def test_attention_matches_oracle_forward_and_backward(self, sampler, grid):
        # one row and one column short, so that padding takes part where the cell is larger than one
        batch_size, channels, height, width = grid.shape
        tokens = tokens_of(batch_size, channels, height - 1, width - 1).requires_grad_()
        output, _ = super_token_attention(
            tokens, mix, grid.cell_size, grid.num_iterations, sampler_of(sampler, tokens)
        )
        reference = tokens.detach().double().requires_grad_()
        expected = oracle.super_token_attention(reference, mix, grid.cell_size, grid.num_iterations, sampler)
        assert output.shape == tokens.shape
        assert relative_error(output, expected) < FLOAT32_TOLERANCE
        weight = torch.randn_like(output)
        (gradient,) = torch.autograd.grad((output * weight).sum(), tokens)
        (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), reference)
        assert relative_error(gradient, expected_gradient) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("sampler", oracle.SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
class TestHalfPrecision:
    def test_stays_near_float32(self, sampler, dtype):
        tokens = tokens_of(2, 32, 16, 16, dtype)
        output, sampled = super_token_attention(tokens, mix, (8, 8), 2, sampler_of(sampler, tokens))
        expected, _ = super_token_attention(tokens.float(), mix, (8, 8), 2, sampler_of(sampler, tokens))
        assert output.dtype == sampled.super_tokens.dtype == dtype
        assert sampled.association.dtype == torch.float32
        assert relative_error(output, expected) < 8 * torch.finfo(dtype).eps

    def test_large_cell_does_not_overflow(self, sampler, dtype):
        # 9 cells of 256 tokens: their plain sum is 2304 times a token, beyond float16
        tokens = tokens_of(1, 8, 48, 48, dtype).abs() * 100
        output, _ = super_token_attention(
            tokens, lambda super_tokens: super_tokens, (16, 16), 1, sampler_of(sampler, tokens)
        )
        assert output.isfinite().all()
        assert output.detach().float().mean() == pytest.approx(tokens.float().mean().item(), rel=0.2)

    def test_starved_super_token_is_finite_forward_and_backward(self, sampler, dtype):
        # the tokens of the left cell point the way of the right one, which is longer: every one of them goes there
        tokens = torch.full((1, 4, 2, 4), 300.0, dtype=dtype)
        tokens[..., :2] = 100.0
        tokens.requires_grad_()
        sampled = sampler_of(sampler, tokens)(tokens, (2, 2), 1)
        output = upsample_tokens(sampled.super_tokens, sampled.association, (2, 2), (2, 4))
        output.sum().backward()
        if sampler in STARVING:
            assert oracle.dense_association(sampled.association, (1, 2), (2, 2)).sum(1)[0, 0] == 0
        assert sampled.super_tokens.isfinite().all()
        assert output.isfinite().all()
        assert tokens.grad.isfinite().all()


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_autocast_leaves_the_association_alone(num_iterations):
    tokens = tokens_of(1, 16, 8, 8)
    expected = sample_super_tokens(tokens, (4, 4), num_iterations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = sample_super_tokens(tokens, (4, 4), num_iterations)
    torch.testing.assert_close(sampled.association, expected.association, rtol=0, atol=0)
    assert relative_error(sampled.super_tokens, expected.super_tokens) < 2 * torch.finfo(torch.bfloat16).eps


class TestBorder:
    def test_outside_cells_take_mass_from_a_grid_of_ones(self):
        tokens = torch.ones(1, 1, 8, 8)
        output, _ = super_token_attention(tokens, lambda super_tokens: super_tokens, (2, 2))
        share = torch.e / (4 * torch.e + 5) * 4, torch.e / (6 * torch.e + 3) * 6
        torch.testing.assert_close(output[0, 0, 3, 3].item(), 1.0)
        torch.testing.assert_close(output[0, 0, 0, 0].item(), share[0])
        torch.testing.assert_close(output[0, 0, 0, 3].item(), share[1])

    def test_masked_sampler_returns_a_grid_of_ones(self):
        tokens = torch.ones(1, 1, 8, 8)
        output, _ = super_token_attention(tokens, lambda super_tokens: super_tokens, (2, 2), sampler="soft_masked")
        torch.testing.assert_close(output, tokens)

    def test_padding_is_zeros_on_the_right_and_at_the_bottom(self):
        tokens = tokens_of(1, 4, 5, 7)
        padded = torch.zeros(1, 4, 8, 8)
        padded[:, :, :5, :7] = tokens
        output, _ = super_token_attention(tokens, mix, (4, 4))
        expected, _ = super_token_attention(padded, mix, (4, 4))
        torch.testing.assert_close(output, expected[:, :, :5, :7])


class TestUpsampling:
    def test_is_the_adjoint_of_the_weighted_sum(self):
        tokens = tokens_of(1, 6, 8, 8).double().requires_grad_()
        sampled = sample_super_tokens(tokens, (4, 4))
        direction = tokens_of(1, 6, 2, 2).double()
        (adjoint,) = torch.autograd.grad((sampled.super_tokens * direction).sum(), tokens)
        dense = oracle.dense_association(sampled.association, (2, 2), (4, 4))
        mass = dense.sum(1).view(1, 1, 2, 2)
        torch.testing.assert_close(adjoint, upsample_tokens(direction / mass, sampled.association, (4, 4), (8, 8)))

    def test_memory_is_channels_last(self):
        sampled = sample_super_tokens(tokens_of(2, 6, 8, 8), (4, 4))
        output = upsample_tokens(sampled.super_tokens, sampled.association, (4, 4), (8, 8))
        assert output.is_contiguous(memory_format=torch.channels_last)


class TestMemoryFormats:
    def test_both_layouts_give_the_same(self):
        tokens = tokens_of(2, 6, 9, 10)
        contiguous, _ = super_token_attention(tokens, mix, (4, 4))
        channels_last, _ = super_token_attention(tokens.contiguous(memory_format=torch.channels_last), mix, (4, 4))
        torch.testing.assert_close(contiguous, channels_last, rtol=0, atol=0)


class TestBadInput:
    def test_no_iteration(self):
        with pytest.raises(ValueError, match=r"`num_iterations` is 0"):
            sample_super_tokens(torch.zeros(1, 1, 8, 8), (4, 4), 0)
