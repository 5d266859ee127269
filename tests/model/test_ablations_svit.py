# SPDX-License-Identifier: Apache-2.0
"""What may stand in the place of a part: it computes what its name says, and the published model is untouched."""

import pytest
import torch
from tiny import tiny_config
from torch.nn import functional as F

from svit_hf import SViTConfig, SViTForImageClassification, SViTModel, save_with_code
from svit_hf.inference import fold_for_inference
from svit_hf.kernels import use_kernels


# cells that are no divisors of the grids of 64 pixels, so that the last ones are filled up
CELLS = [3, 3, 2, 2]
CHANGES = [
    {"super_token_mixer": "convolution"},
    {"super_token_mixer": "none"},
    *({"attention_kinds": kind} for kind in ("global", "window", "pooled_keys", "none")),
    {"attention_kinds": ["window", "pooled_keys", "none", "global"]},
    {"use_position_embedding": False},
    {"feed_forward_kind": "plain"},
    {"stem_kind": "patches"},
    {"use_projection": False},
]
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, *change.items())))


def model_with(**fields):
    return SViTForImageClassification(tiny_config(super_token_sizes=CELLS, **fields)).eval()


def first_attention(**fields):
    """Return the first attention of a model, and tokens for it."""
    return model_with(**fields).svit.stages[0].layers[0].attention, torch.randn(2, 8, 7, 10)


def normalized(attention, tokens):
    return attention.norm(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@changes
class TestEveryChange:
    def test_every_parameter_gets_a_gradient(self, change):
        model = model_with(**change).train()
        model(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 1])).loss.backward()
        missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        # a layer without attention has nothing to scale
        assert all("layer_scale1" in name for name in missing)
        assert not missing or "none" in str(change)

    def test_saved_with_code_and_loaded(self, change, tmp_path):
        model, pixels = model_with(**change), torch.randn(1, 3, 50, 70)
        save_with_code(model, tmp_path)
        loaded = SViTForImageClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-7)
        assert (tmp_path / "ablations_svit.py").is_file()

    def test_differs_from_the_published_model(self, change):
        published, changed = model_with(), model_with(**change)
        own = changed.state_dict()
        weights = {name: value for name, value in published.state_dict().items() if name in own}
        changed.load_state_dict(
            own | {name: weights[name] for name in weights if weights[name].shape == own[name].shape}
        )
        pixels = torch.randn(1, 3, 64, 64)
        assert (published(pixels).logits - changed(pixels).logits).norm() > 1e-4

    @torch.no_grad()
    def test_folded_and_with_kernels_the_same(self, change):
        model, pixels = model_with(**change), torch.randn(1, 3, 64, 64)
        expected = model(pixels).logits
        torch.testing.assert_close(fold_for_inference(model)(pixels).logits, expected, rtol=1e-4, atol=1e-5)
        use_kernels(model, "auto")
        torch.testing.assert_close(model(pixels).logits, expected)


class TestPublishedModel:
    def test_configs_without_these_fields_are_the_published_model(self):
        fields = tiny_config(depths=[1, 1, 1, 1]).to_dict()
        for name in (
            "super_token_mixer",
            "attention_kinds",
            "use_position_embedding",
            "feed_forward_kind",
            "stem_kind",
            "use_projection",
        ):
            del fields[name]
        assert SViTConfig.from_dict(fields).to_dict() == tiny_config(depths=[1, 1, 1, 1]).to_dict()

    def test_nothing_is_swapped(self):
        kinds = {type(module).__module__ for module in SViTModel(tiny_config()).modules()}
        assert not any("ablations" in kind for kind in kinds)


class TestWhatIsComputed:
    def test_unmixed_super_tokens_are_spread_back(self):
        attention, tokens = first_attention(super_token_mixer="none", super_token_sampler="grid")
        means = F.avg_pool2d(F.pad(normalized(attention, tokens), (0, 2, 0, 2)), 3)
        expected = means.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)[..., :7, :10]
        torch.testing.assert_close(attention(tokens)[0], expected)

    def test_convolution_reaches_two_super_tokens_far(self):
        attention, _ = first_attention(super_token_mixer="convolution")
        super_tokens = torch.randn(1, 8, 7, 7)
        changed = super_tokens.clone()
        changed[..., 3, 3] += 1
        difference = attention.self_attention(changed)[0] - attention.self_attention(super_tokens)[0]
        is_reached = difference.abs().amax(dim=(0, 1)) > 1e-6
        assert is_reached[1:6, 1:6].all()
        assert is_reached.sum() == 25

    def test_global_attention_is_that_of_a_cell_of_one(self):
        attention, tokens = first_attention(attention_kinds="global")
        expected = attention.self_attention(normalized(attention, tokens))[0]
        torch.testing.assert_close(attention(tokens)[0], expected, rtol=0, atol=0)

    def test_windows_are_attended_one_by_one(self):
        attention, tokens = first_attention(attention_kinds="window")
        attended = attention(tokens)[0]
        inputs = F.pad(normalized(attention, tokens), (0, 2, 0, 2))
        for y, x in ((0, 0), (3, 6), (6, 9)):
            window = attention.self_attention(inputs[..., y : y + 3, x : x + 3])[0]
            actual = attended[..., y : y + 3, x : x + 3]
            torch.testing.assert_close(actual, window[..., : actual.shape[2], : actual.shape[3]])

    def test_pooled_keys_are_means_of_cells(self):
        attention, tokens = first_attention(attention_kinds="pooled_keys")
        inputs = normalized(attention, tokens)
        # of the last cells, only what is inside of the grid
        means = torch.stack([part.mean(dim=(2, 3)) for row in inputs.split(3, 2) for part in row.split(3, 3)], dim=1)
        query = F.linear(inputs.flatten(2).mT, attention.query.weight[:, :, 0, 0], attention.query.bias)
        packed = F.linear(means, attention.key_value.weight[:, :, 0, 0], attention.key_value.bias)
        key, value = packed.chunk(2, dim=-1)
        # the first stage has one head
        attended = (query @ key.mT * 8**-0.5).softmax(-1) @ value
        projection = attention.projection
        expected = F.linear(attended, projection.weight[:, :, 0, 0], projection.bias).mT.unflatten(2, (7, 10))
        torch.testing.assert_close(attention(tokens)[0], expected)

    def test_without_attention_nothing_is_added(self):
        attention, tokens = first_attention(attention_kinds="none")
        torch.testing.assert_close(tokens + attention(tokens)[0], tokens, rtol=0, atol=0)

    @pytest.mark.parametrize("size", [(64, 64), (50, 71)], ids=str)
    def test_patches_give_as_many_tokens_as_convolutions(self, size):
        pixels = torch.randn(1, 3, *size)
        expected = model_with().svit.embeddings(pixels).shape
        assert model_with(stem_kind="patches").svit.embeddings(pixels).shape == expected

    def test_without_projection_the_last_stage_is_pooled(self):
        model = model_with(use_projection=False)
        assert model.config.projection_dim == model.classifier.in_features == model.config.hidden_sizes[-1]
        outputs = model.svit(torch.randn(2, 3, 64, 64))
        norm = model.svit.pooler.batch_norm
        expected = F.silu(norm(outputs.last_hidden_state)).mean(dim=(2, 3))
        torch.testing.assert_close(outputs.pooler_output, expected)
        assert not [name for name in model.state_dict() if "pooler.projection" in name]

    def test_without_position_embedding_and_convolution_layers_see_no_neighbours(self):
        fields = {"use_position_embedding": False, "feed_forward_kind": "plain", "attention_kinds": "none"}
        layer, tokens = model_with(**fields).svit.stages[0].layers[0], torch.randn(1, 8, 4, 4)
        torch.testing.assert_close(layer(tokens).flip(3), layer(tokens.flip(3)))


class TestRefused:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"super_token_mixer": "mean"}, "`super_token_mixer` is 'mean'; allowed are"),
            ({"feed_forward_kind": "wide"}, "`feed_forward_kind` is 'wide'"),
            ({"stem_kind": "none"}, "`stem_kind` is 'none'"),
            ({"attention_kinds": "local"}, "`attention_kinds` is 'local'"),
            ({"attention_kinds": ["window"]}, "`attention_kinds` is .*for each of the 4 stages"),
            ({"attention_kinds": ["window"] * 4, "super_token_sizes": [4, 2, 1, 1]}, "'window' for stage 3"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_with_the_name_of_the_field(self, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_config(**fields)
