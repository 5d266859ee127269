# SPDX-License-Identifier: Apache-2.0
"""Samplers by name: registering, and models whose layers learn something for theirs."""

import copy

import oracle
import pytest
import torch
from tiny import tiny_config
from torch import nn

from svit_hf import SuperTokenAttention, SViTForImageClassification, register_super_token_sampler, save_with_code
from svit_hf.kernels import use_kernels
from svit_hf.model.samplers_svit import SlotSampler
from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS, sample_super_tokens


class Stretched(nn.Module):
    """Sampler with a parameter for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.stretch = nn.Parameter(torch.empty(channels))

    def reset_parameters(self):
        nn.init.constant_(self.stretch, 2.0)

    def forward(self, hidden_states, cell_size, num_iterations):
        return sample_super_tokens(self.stretch[:, None, None] * hidden_states, cell_size, num_iterations)


@pytest.fixture
def register(monkeypatch):
    """Return the function that registers, for one test alone."""
    for name in ("mine", "stretched"):
        # so that it is gone afterwards
        monkeypatch.setitem(SUPER_TOKEN_SAMPLERS, name, None)
        monkeypatch.delitem(SUPER_TOKEN_SAMPLERS, name)
    return register_super_token_sampler


class TestRegistering:
    def test_function_is_called_by_the_layers(self, register):
        cells = []

        def mine(hidden_states, cell_size, num_iterations):
            cells.append((cell_size, num_iterations))
            return sample_super_tokens(hidden_states, cell_size, num_iterations)

        register("mine", mine)
        model = SViTForImageClassification(tiny_config(super_token_sampler="mine")).eval()
        model(torch.randn(1, 3, 64, 64))
        assert cells == [((4, 4), 1), ((2, 2), 1), ((2, 2), 1)]

    def test_module_is_made_for_each_layer_and_initialized(self, register, tmp_path):
        register("stretched", Stretched)
        model = SViTForImageClassification(tiny_config(super_token_sampler="stretched")).eval()
        learned = {name: value for name, value in model.named_parameters() if "learned_sampler" in name}
        assert [len(value) for value in learned.values()] == [8, 12, 12]
        assert all((value == 2).all() for value in learned.values())

        plain = SViTForImageClassification(tiny_config())
        plain.save_pretrained(tmp_path)
        loaded = SViTForImageClassification.from_pretrained(tmp_path, super_token_sampler="stretched")
        assert all((value == 2).all() for name, value in loaded.named_parameters() if "learned_sampler" in name)

    def test_what_was_learned_is_saved(self, register, tmp_path):
        register("stretched", Stretched)
        model = SViTForImageClassification(tiny_config(super_token_sampler="stretched")).eval()
        nn.init.normal_(model.svit.stages[0].layers[0].attention.learned_sampler.stretch)
        model.save_pretrained(tmp_path)
        loaded = SViTForImageClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["", "soft", "cosine"])
    def test_taken_names_are_refused(self, name):
        with pytest.raises(ValueError, match=f"`name` is '{name}'"):
            register_super_token_sampler(name, Stretched)

    def test_once_more_is_harmless(self):
        register_super_token_sampler("soft", sample_super_tokens)

    @pytest.mark.parametrize("sampler", [Stretched(3), "soft"], ids=["module", "name"])
    def test_neither_function_nor_class_is_refused(self, register, sampler):
        with pytest.raises(ValueError, match="`sampler` is"):
            register("mine", sampler)


class TestModels:
    @pytest.mark.parametrize("sampler", SUPER_TOKEN_SAMPLERS)
    def test_every_parameter_gets_a_gradient(self, sampler):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=2, sampler=sampler)
        tokens = torch.randn(1, 8, 5, 5, requires_grad=True)
        attention(tokens).square().sum().backward()
        assert tokens.grad.abs().sum() > 0
        assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())

    def test_functions_add_no_weights(self):
        published = SViTForImageClassification(tiny_config()).state_dict()
        for name in ("soft_masked", "grid", "hard", "position", "differentiable", "random"):
            assert SViTForImageClassification(tiny_config(super_token_sampler=name)).state_dict().keys() == (
                published.keys()
            )
        with_cosine = SViTForImageClassification(tiny_config(super_token_sampler="cosine")).state_dict()
        assert sum("log_scale" in name for name in with_cosine.keys() - published.keys()) == 3

    def test_slots_compare_projected_tokens_with_projected_super_tokens(self):
        sampler, tokens = SlotSampler(8), torch.randn(1, 8, 2, 4)
        nn.init.normal_(sampler.key)
        nn.init.normal_(sampler.query)
        with torch.no_grad():
            shares = oracle.dense_association(sampler(tokens, (2, 2)).association, (1, 2), (2, 2))
            means = torch.stack([half.mean((2, 3)) for half in tokens.split(2, dim=3)], dim=1)
            keys = nn.functional.layer_norm(tokens.flatten(2).mT, (8,)) @ sampler.key.T
            queries = nn.functional.layer_norm(means, (8,)) @ sampler.query.T
        torch.testing.assert_close(shares, (keys @ queries.mT / 8**0.5).softmax(-1))

    def test_a_plain_layer_makes_no_weights_for_sampling(self):
        assert SuperTokenAttention(8, num_heads=2, cell_size=1, sampler="cosine").learned_sampler is None

    def test_kernels_leave_unknown_samplers_to_pytorch(self):
        model = SViTForImageClassification(tiny_config(super_token_sampler="position")).eval()
        pixels = torch.randn(1, 3, 64, 64)
        expected = model(pixels).logits
        use_kernels(model, "auto")
        torch.testing.assert_close(model(pixels).logits, expected, rtol=0, atol=0)

    def test_copies_learn_on_their_own(self):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=2, sampler="cosine")
        twin = copy.deepcopy(attention)
        nn.init.zeros_(twin.learned_sampler.log_scale)
        assert attention.learned_sampler.log_scale != 0

    def test_code_beside_the_weights_knows_the_samplers(self, tmp_path):
        model = SViTForImageClassification(tiny_config(super_token_sampler="cosine"))
        save_with_code(model, tmp_path)
        assert (tmp_path / "samplers_svit.py").is_file()

    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", ["hard", "position", "cosine", "slots"])
    def test_compiled_gives_the_same(self, sampler):
        attention = SuperTokenAttention(8, num_heads=2, cell_size=2, sampler=sampler).eval()
        tokens = torch.randn(1, 8, 6, 6)
        with torch.no_grad():
            expected = attention(tokens)
            compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)(tokens)
        torch.testing.assert_close(compiled, expected)
