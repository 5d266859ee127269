# SPDX-License-Identifier: Apache-2.0
"""Vision transformers that go on with super tokens in place of patches: tiny ones with random weights."""

import copy
import math

import pytest
import torch
from other_vision_transformers import BACKBONES, MODELS, TOLERANCE, give_no_positions, make, states, with_large_weights
from tiny import tiny_config
from torch import nn

from svit_hf import SViTForImageClassification, apply_super_tokens, merge_into_super_tokens
from svit_hf.other_models.merging import choose_patches, number_groups


TWICE = {0: 0.3, 1: 0.2}


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_features_are_those_of_all_patches_and_removing_gives_the_same_bits(self, name):
        model = make(name)
        keys = list(model.state_dict())
        expected = states(model)
        counts = []
        layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        hook = layers[2].register_forward_hook(lambda module, args, output: counts.append(args[0].shape[1]))
        with merge_into_super_tokens(model, TWICE):
            merged = states(model)
            assert list(model.state_dict()) == keys
        # 36 patches, of which 30 and 20 percent are merged
        assert counts == [expected.shape[1] - 11 - 7]
        assert merged.shape == expected.shape
        assert not torch.allclose(merged, expected)
        assert torch.equal(states(model), expected)
        hook.remove()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_equal_patches_lose_nothing(self, name):
        model = make(name)
        give_no_positions(model)
        pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 6, 6)
        expected = states(model, pixels)
        with merge_into_super_tokens(model, {0: 0.5, 1: 0.2}):
            torch.testing.assert_close(states(model, pixels), expected, **TOLERANCE)

    def test_every_parameter_gets_a_gradient(self, name):
        model = make(name)
        states(model).square().sum().backward()
        expected = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        model.zero_grad()
        with merge_into_super_tokens(model, TWICE):
            states(model).square().sum().backward()
        got = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert got.keys() == expected
        assert all(gradient.isfinite().all() for gradient in got.values())


@pytest.mark.parametrize("is_asked_before", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_of_a_backbone_have_all_patches(name, is_asked_before):
    model = with_large_weights(BACKBONES[name](["stem", "stage1", "stage2", "stage3"]))
    give_no_positions(model)
    equal, pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 6, 6), torch.randn(1, 3, 24, 24)
    twin = copy.deepcopy(model)
    expected, of_equal = twin(pixels).feature_maps, twin(equal).feature_maps
    if is_asked_before:
        # from then on Transformers' hooks, which collect hidden states, are there
        model(pixels)
    with merge_into_super_tokens(model, {0: 0.3}):
        maps = model(pixels).feature_maps
        assert [each.shape for each in maps] == [each.shape for each in expected]
        changed = [not torch.equal(*each) for each in zip(maps, expected, strict=True)]
        assert changed == [False, False, True, True]
        for each in zip(model(equal).feature_maps, of_equal, strict=True):
            torch.testing.assert_close(*each, **TOLERANCE)
    assert all(torch.equal(*each) for each in zip(model(pixels).feature_maps, expected, strict=True))


def test_a_backbone_computes_few_tokens_behind_the_maps_it_gives():
    model, counts = BACKBONES["dinov2"](["stage2", "stage3"]).eval(), []
    with merge_into_super_tokens(model, {0: 0.3}):
        model.encoder.layer[2].norm1.register_forward_hook(lambda _, args, output: counts.append(output.shape[1]))
        model(torch.randn(1, 3, 24, 24))
    assert counts == [1 + 36 - 11]


@pytest.mark.parametrize("name", MODELS)
def test_the_last_hidden_state_has_all_patches_whatever_was_asked_before(name):
    model = make(name)
    pixels = torch.randn(1, 3, 24, 24)
    expected = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    with merge_into_super_tokens(model, {0: 0.3}):
        merged = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert [len(each[0]) for each in merged] == [len(expected[0][0])] * 2 + [len(expected[0][0]) - 11] + [
        len(expected[0][0])
    ]


def test_gradient_checkpointing_is_refused():
    model = make("vit").train()
    model.gradient_checkpointing_enable()
    with merge_into_super_tokens(model, TWICE):
        with pytest.raises(ValueError, match="`gradient_checkpointing` is on"):
            states(model)
        # nothing is computed a second time
        assert states(model.eval()).isfinite().all()


def test_patches_keep_what_set_them_apart():
    model = make("dinov2")
    # what comes after the first merge adds nothing
    for layer in model.encoder.layer[1:]:
        nn.init.zeros_(layer.layer_scale1.lambda1)
        nn.init.zeros_(layer.layer_scale2.lambda1)
    expected = states(model)
    with merge_into_super_tokens(model, TWICE):
        torch.testing.assert_close(states(model), expected, **TOLERANCE)


@pytest.mark.parametrize("cell_size", [2, (1, 2), (3, 2)])
def test_any_grid_and_the_next_images_start_anew(cell_size):
    model = make("dinov2")
    pixels = torch.randn(1, 3, 20, 36)
    with merge_into_super_tokens(model, TWICE, cell_size):
        first = states(model, pixels)
        assert first.shape == (1, 1 + 5 * 9, 16)
        assert states(model).shape == (2, 1 + 6 * 6, 16)
        assert torch.equal(states(model, pixels), first)


def test_fewer_patches_are_merged_where_cells_at_the_edge_leave_fewer():
    # 3x3 patches have 4 seeds: 5 can be merged, not 6
    model, counts = make("dinov2"), []
    with merge_into_super_tokens(model, {0: 0.4, 1: 0.3}):
        model.encoder.layer[2].norm1.register_forward_hook(lambda _, args, output: counts.append(output.shape[1]))
        assert states(model, torch.randn(1, 3, 12, 12)).shape[1] == 1 + 9
    assert counts == [1 + 9 - 5]


def literal_choice(keys, chosen, cell_size, number):
    """Choose in one image, patch by patch: (D, H, W), and (H, W) of what was chosen before."""
    _, height, width = keys.shape
    columns = math.ceil(width / cell_size[1])
    found = []
    for y in range(height):
        for x in range(width):
            row, column = y // cell_size[0], x // cell_size[1]
            if (y, x) == (row * cell_size[0], column * cell_size[1]) or chosen[y, x] >= 0:
                continue
            candidates = []
            for cell_row in (row - 1, row, row + 1):
                for cell_column in (column - 1, column, column + 1):
                    seed = cell_row * cell_size[0], cell_column * cell_size[1]
                    if 0 <= seed[0] < height and 0 <= seed[1] < width:
                        similarity = torch.cosine_similarity(keys[:, y, x], keys[:, seed[0], seed[1]], dim=0).item()
                        candidates.append((similarity, cell_row * columns + cell_column))
            found.append((*max(candidates), y, x))
    result = chosen.clone()
    for _, cell, y, x in sorted(found, reverse=True)[:number]:
        result[y, x] = cell
    return result


@pytest.mark.parametrize("cell_size", [(2, 2), (2, 3)])
def test_patches_are_chosen_as_one_would_by_hand(cell_size):
    # of two dimensions, so that some patches are like no seed
    keys = torch.randn(3, 2, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    number_of_seeds = 12 if cell_size == (2, 2) else 9
    chosen, expected = None, [torch.full((5, 7), -1)] * 2
    for layer, number in zip(keys, (8, 5, 35 - number_of_seeds - 13), strict=True):
        chosen = choose_patches(layer, cell_size, number, chosen)
        expected = [literal_choice(*each, cell_size, number) for each in zip(layer, expected, strict=True)]
        assert torch.equal(chosen.unflatten(1, (5, 7)), torch.stack(expected))


def test_patches_unlike_all_seeds_stay_in_the_grid():
    # all products with seeds are -1, and those with what is outside of the grid 0, which is more
    keys = torch.full((1, 1, 5, 7), -1.0)
    keys[..., ::2, ::2] = 1.0
    # with products that are alike, the first of the cells around that there is
    assert choose_patches(keys, (2, 2), 23, None).unflatten(1, (5, 7)).tolist() == [
        [
            [-1, 0, -1, 0, -1, 1, -1],
            [0, 0, 0, 0, 1, 1, 2],
            [-1, 0, -1, 0, -1, 1, -1],
            [0, 0, 0, 0, 1, 1, 2],
            [-1, 4, -1, 4, -1, 5, -1],
        ]
    ]


def test_groups_are_cells_then_patches_that_are_alone():
    # of 3x3 patches the corners are seeds
    chosen = torch.tensor([[-1, 1, -1, -1, 0, -1, -1, -1, -1]])
    assert number_groups(chosen, (3, 3), (2, 2)).tolist() == [[0, 1, 1, 4, 0, 5, 2, 6, 3]]


def test_copies_work_and_saved_weights_are_the_own(tmp_path):
    model = make("vit")
    expected = states(model)
    handle = merge_into_super_tokens(model)
    merged = states(model)
    twin = copy.deepcopy(model)
    model.save_pretrained(tmp_path)
    handle.remove()
    handle.remove()
    torch.testing.assert_close(states(type(model).from_pretrained(tmp_path).eval()), expected)
    assert torch.equal(states(twin), merged)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cell_size": 1}, "`cell_size` is 1"),
        ({"cell_size": (0, 3)}, r"`cell_size` is \(0, 3\)"),
        ({"shares": {}}, r"`shares` has the layers \[\]"),
        ({"shares": {2: 0.1}}, r"`shares` has the layers \[2\]; allowed are some of those from 0 to 1"),
        ({"shares": {-1: 0.1}}, r"`shares` has the layers \[-1\]"),
        ({"shares": {0: 0.0}}, r"`shares` is \{0: 0.0\}; each has to be above 0"),
        ({"shares": {0: 0.5, 1: 0.3}}, "all together at most 0.75"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        merge_into_super_tokens(MODELS["vit"](), **kwargs)


def test_other_models_and_a_second_time_are_refused():
    with pytest.raises(ValueError, match="`model` is a SViTForImageClassification"):
        merge_into_super_tokens(SViTForImageClassification(tiny_config()))
    model = make("vit")
    with apply_super_tokens(model, layers=[2]), pytest.raises(ValueError, match="`shares` has a layer whose"):
        merge_into_super_tokens(model)
    with merge_into_super_tokens(model), pytest.raises(ValueError, match="`shares` has a layer whose"):
        merge_into_super_tokens(model)


@pytest.mark.slow
def test_compiled_gives_the_same():
    model = make("dinov2")
    with torch.no_grad(), merge_into_super_tokens(model, TWICE):
        expected = states(model)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(states(compiled), expected, **TOLERANCE)
