# SPDX-License-Identifier: Apache-2.0
"""Super tokens inside vision transformers of Transformers: tiny ones with random weights."""

import copy
from functools import partial

import pytest
import torch
from other_vision_transformers import LAYOUT, MODELS, SIGLIP, SIZES, TOLERANCE, give_no_positions, make, states
from tiny import tiny_config
from torch import nn
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, ViTConfig, ViTForImageClassification

from svit_hf import SViTForImageClassification, apply_super_tokens, merge_into_super_tokens
from svit_hf.export.exporting import exporters_to_stderr
from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_removing_gives_the_same_bits_and_no_layer_changes_nothing(self, name):
        model = make(name)
        keys = list(model.state_dict())
        expected = states(model)
        with apply_super_tokens(model, layers=()):
            assert torch.equal(states(model), expected)
        with apply_super_tokens(model, cell_size=3, layers=[1, 2]):
            changed = states(model)
            assert changed.shape == expected.shape
            assert not torch.allclose(changed, expected)
            assert list(model.state_dict()) == keys
        assert torch.equal(states(model), expected)

    @pytest.mark.parametrize("mode", ["kv", "both"])
    def test_equal_patches_lose_nothing(self, name, mode):
        # one patch many times: its super tokens are that patch, and only the bias keeps their number right
        model = make(name)
        give_no_positions(model)
        pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 6, 6)
        expected = states(model, pixels)
        with apply_super_tokens(model, cell_size=2, mode=mode):
            torch.testing.assert_close(states(model, pixels), expected, **TOLERANCE)

    @pytest.mark.parametrize("mode", ["kv", "both"])
    def test_cell_of_one_patch_in_grid_means_is_the_model_itself(self, name, mode):
        model = make(name)
        expected = states(model)
        with apply_super_tokens(model, cell_size=1, mode=mode, sampler="grid"):
            torch.testing.assert_close(states(model), expected, **TOLERANCE)

    @pytest.mark.parametrize("mode", ["kv", "both"])
    def test_every_parameter_gets_a_gradient(self, name, mode):
        model = make(name)
        expected = {}
        states(model).square().sum().backward()
        expected = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        model.zero_grad()
        with apply_super_tokens(model, cell_size=4, mode=mode):
            states(model).square().sum().backward()
        got = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert got.keys() == expected
        assert all(gradient.isfinite().all() for gradient in got.values())


@pytest.mark.parametrize("mode", ["kv", "both"])
@pytest.mark.parametrize("sampler", SUPER_TOKEN_SAMPLERS)
def test_any_grid_and_every_sampler(sampler, mode):
    model = make("dinov2")
    pixels = torch.randn(1, 3, 20, 36)
    with apply_super_tokens(model, cell_size=(2, 4), mode=mode, sampler=sampler, num_iterations=2):
        assert states(model, pixels).shape == (1, 1 + 5 * 9, 16)
        assert states(model, pixels).isfinite().all()


def test_repeated_patches_at_the_edge_count_once():
    # 5x9 equal patches, whose last cells are not whole
    model = make("dinov2")
    nn.init.zeros_(model.embeddings.position_embeddings)
    pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 5, 9)
    expected = states(model, pixels)
    with apply_super_tokens(model, cell_size=2, mode="both"):
        torch.testing.assert_close(states(model, pixels), expected, **TOLERANCE)


@pytest.mark.parametrize("mode", ["kv", "both"])
def test_a_super_token_is_turned_as_its_patches_are_on_average(mode, monkeypatch):
    model, given = make("dinov3"), []
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: given.append(args[:2]) or attend(*args, **kwargs),
    )
    # 5x9 equal patches, whose keys differ by where they are alone
    pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 5, 9)
    states(model, pixels)
    with apply_super_tokens(model, cell_size=(2, 4), layers=[0], mode=mode, sampler="grid"):
        states(model, pixels)
    own, pooled = given[0], given[3]
    for kind in ("queries", "keys") if mode == "both" else ("keys",):
        index = ("queries", "keys").index(kind)
        grid = own[index][0, :, 3:].unflatten(1, (5, 9))  # (A, 5, 9, D)
        cells = [part.mean((1, 2)) for rows in grid.split(2, 1) for part in rows.split(4, 2)]
        torch.testing.assert_close(pooled[index][0, :, 3:], torch.stack(cells, 1), **TOLERANCE)
        torch.testing.assert_close(pooled[index][:, :, :3], own[index][:, :, :3], **TOLERANCE)


def test_saving_and_copying_are_unaffected(tmp_path):
    model = ViTForImageClassification(ViTConfig(**LAYOUT, **SIZES)).eval()
    pixels = torch.randn(1, 3, 24, 24)
    expected = model(pixels).logits
    handle = apply_super_tokens(model, cell_size=3)
    with_super_tokens = model(pixels).logits
    twin = copy.deepcopy(model)
    model.save_pretrained(tmp_path)
    handle.remove()
    handle.remove()
    torch.testing.assert_close(ViTForImageClassification.from_pretrained(tmp_path).eval()(pixels).logits, expected)
    torch.testing.assert_close(twin(pixels).logits, with_super_tokens)
    assert not torch.allclose(with_super_tokens, expected)


def test_the_text_tower_is_left_alone():
    text = LAYOUT | {"vocab_size": 11, "max_position_embeddings": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=SIGLIP)).eval()
    with apply_super_tokens(model) as handle:
        assert len(handle.attentions) == 3
        assert all(type(attention.config) is SiglipVisionConfig for attention in handle.attentions)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cell_size": 0}, "`cell_size` is 0"),
        ({"mode": "q"}, "`mode` is 'q'"),
        ({"layers": [3]}, r"`layers` is \[3\]; the model has layers from 0 to 2"),
        ({"layers": [-1]}, r"`layers` is \[-1\]"),
        ({"sampler": "softer"}, "`sampler` is 'softer'"),
        ({"num_iterations": 0}, "`num_iterations` is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        apply_super_tokens(MODELS["vit"](), **kwargs)


def test_other_models_and_a_second_time_are_refused():
    with pytest.raises(ValueError, match="`model` is a SViTForImageClassification"):
        apply_super_tokens(SViTForImageClassification(tiny_config()))
    model = MODELS["vit"]()
    apply_super_tokens(model, layers=[0])
    apply_super_tokens(model, layers=[1])
    with pytest.raises(ValueError, match="was replaced before"):
        apply_super_tokens(model, layers=[1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kv", "both"])
def test_compiled_gives_the_same(mode):
    model = make("dinov3")
    with torch.no_grad(), apply_super_tokens(model, mode=mode):
        expected = states(model)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(states(compiled), expected, **TOLERANCE)


class LastHiddenState(nn.Module):
    """A model with one output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return states(self.model, pixels)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("change", [partial(apply_super_tokens, cell_size=4, mode="both"), merge_into_super_tokens])
def test_exported_to_onnx_gives_the_same(change, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, pixels = make("vit"), torch.randn(1, 3, 24, 24)
    with torch.no_grad(), change(model):
        expected = states(model, pixels)
        with exporters_to_stderr():
            program = torch.onnx.export(LastHiddenState(model).eval(), (torch.zeros_like(pixels),), dynamo=True)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, **TOLERANCE)
