# SPDX-License-Identifier: Apache-2.0
"""The layers of SViT by themselves, above all the stand-alone super token attention."""

import oracle
import pytest
import torch
from torch.nn import functional as F

from svit_hf import SuperTokenAttention
from svit_hf.model.modeling_svit import SViTDropPath


SIZES = [(8, 8), (7, 13), (1, 1), (3, 40)]


def grid(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


class TestSuperTokenAttention:
    @pytest.mark.parametrize("cell_size", [1, 2, 16, (2, 3)], ids=str)
    @pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
    def test_keeps_the_shape_for_any_size(self, height, width, cell_size):
        attention = SuperTokenAttention(12, num_heads=3, cell_size=cell_size)
        tokens = grid(2, 12, height, width)
        output = attention(tokens)
        assert output.shape == tokens.shape
        assert output.isfinite().all()

    def test_odd_width_is_allowed(self):
        assert SuperTokenAttention(3, num_heads=1, cell_size=2)(grid(1, 3, 4, 4)).shape == (1, 3, 4, 4)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["fp64", "fp16", "bf16"])
    @pytest.mark.parametrize("cell_size", [1, 16])
    def test_keeps_the_dtype(self, dtype, cell_size):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=cell_size).to(dtype)
        output = attention(grid(1, 8, 20, 20, dtype=dtype))
        assert output.dtype == dtype
        assert output.isfinite().all()

    @pytest.mark.parametrize("cell_size", [1, 4])
    def test_both_memory_layouts_give_the_same(self, cell_size):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=cell_size).eval()
        tokens = grid(2, 8, 8, 10)
        channels_last = attention(tokens.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(attention(tokens), channels_last)

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    def test_matches_oracle(self, attn_implementation):
        attention = SuperTokenAttention(
            8, num_heads=2, cell_size=4, num_iterations=2, attn_implementation=attn_implementation
        )
        tokens = grid(2, 8, 7, 9)
        weights = {name: value.double() for name, value in attention.self_attention.state_dict().items()}

        def attend(super_tokens):
            rows = super_tokens.flatten(2).mT  # (B, G, C)
            packed = rows @ weights["qkv.weight"].flatten(1).T + weights["qkv.bias"]
            heads = []
            for head in packed.chunk(2, dim=-1):
                query, key, value = head.chunk(3, dim=-1)
                heads.append((query @ key.mT / 2).softmax(-1) @ value)
            mixed = torch.cat(heads, -1) @ weights["projection.weight"].flatten(1).T + weights["projection.bias"]
            return mixed.mT.unflatten(2, super_tokens.shape[-2:])

        expected = oracle.super_token_attention(tokens, attend, (4, 4), 2)
        torch.testing.assert_close(attention(tokens), expected.float(), rtol=1e-4, atol=1e-5)

    def test_cell_one_is_plain_self_attention(self):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=1)
        tokens = grid(2, 8, 3, 5)
        weights = attention.self_attention
        packed = weights.qkv(tokens).flatten(2).unflatten(1, (2, 3, 4))  # (B, A, 3, D, N)
        query, key, value = (part.mT for part in packed.unbind(2))
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, A, N, D)
        expected = weights.projection(attended.mT.flatten(1, 2).unflatten(2, (3, 5)))
        torch.testing.assert_close(attention(tokens), expected)

    def test_every_parameter_and_the_input_get_a_gradient(self):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=2)
        tokens = grid(1, 8, 5, 5).requires_grad_()
        attention(tokens).square().sum().backward()
        assert tokens.grad.abs().sum() > 0
        assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_heads": 3}, r"`num_heads` is 3; it has to be a divisor of `dim`=8"),
            ({"num_heads": 0}, r"`num_heads` is 0"),
            ({"cell_size": 0}, r"has 0 for stage 1; allowed is one int"),
            ({"num_iterations": 0}, r"it has to be at least 1 where the cell is larger than 1"),
            ({"sampler": "harder"}, r"`super_token_sampler` is 'harder'; allowed are"),
            ({"attention_dropout": 2.0}, r"`attention_probs_dropout_prob` is 2.0"),
        ],
        ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
    )
    def test_bad_arguments_are_named(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            SuperTokenAttention(**({"dim": 8, "num_heads": 2, "cell_size": 4} | kwargs))


class TestDropPath:
    def test_drops_whole_images_and_keeps_the_mean(self):
        torch.manual_seed(0)
        output = SViTDropPath(0.25).train()(torch.ones(4000, 2, 3, 1))
        per_image = output.flatten(1)
        torch.testing.assert_close(per_image.unique(), torch.tensor([0.0, 4 / 3]))
        assert (per_image == per_image[:, :1]).all()
        # 4000 draws: three standard deviations are 0.02
        assert (per_image[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.02)

    def test_is_the_identity_in_evaluation(self):
        images = grid(2, 3, 4, 4)
        assert SViTDropPath(0.9).eval()(images) is images
