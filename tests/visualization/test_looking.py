# SPDX-License-Identifier: Apache-2.0
"""Where a point looks: against dense matrices, and against what a layer really gives."""

import pytest
import torch
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.model.super_tokens_svit import sample_super_tokens
from svit_hf.visualization import LayerRecording, Recording, record, super_token_at, where_a_pixel_looks


GRID, CELL = (7, 10), (3, 4)
# float32 sums of some hundred shares
TOLERANCE = 1e-6


def recording_of(**layer):
    return Recording(view=Image.new("RGB", (8, 8)), layers=(LayerRecording(stage=1, layer=1, **layer),))


def layer_with_super_tokens():
    (association,) = sample_super_tokens(torch.randn(1, 6, *GRID), CELL, 1).association
    attention = torch.randn(2, len(association), len(association)).softmax(dim=-1)
    queries, keys = torch.randn(2, 2, GRID[0] * GRID[1], 3)
    return {
        "grid": GRID,
        "cell_size": CELL,
        "association": association,
        "attention": attention,
        "queries": queries,
        "keys": keys,
    }


def dense_association(association):
    """Return `(tokens, G)` of the padded grid, 9x12 tokens in 3x3 cells, with loops."""
    dense = torch.zeros(9, 12, 9)
    for y in range(9):
        for x in range(12):
            for k in range(9):
                row, column = y // 3 + k // 3 - 1, x // 4 + k % 3 - 1
                if 0 <= row < 3 and 0 <= column < 3:
                    dense[y, x, row * 3 + column] = association[y // 3 * 3 + x // 4, y % 3 * 4 + x % 4, k]
    return dense.view(-1, 9)


@pytest.mark.parametrize("token", [(0, 0), (3, 5), (6, 9)], ids=["corner", "inside", "beside-padding"])
def test_row_equals_dense_matrices(token):
    layer = layer_with_super_tokens()
    dense = dense_association(layer["association"])
    matrix = dense @ layer["attention"].mean(dim=0) @ (dense / dense.sum(dim=0)).T
    expected = matrix[token[0] * 12 + token[1]].view(9, 12)[: GRID[0], : GRID[1]]

    point = ((token[1] + 0.5) / GRID[1], (token[0] + 0.5) / GRID[0])
    looks = where_a_pixel_looks(recording_of(**layer), point, 1, 1)
    assert torch.allclose(looks, expected, atol=TOLERANCE, rtol=0)
    assert super_token_at(recording_of(**layer).layers[0], point) == int(dense[token[0] * 12 + token[1]].argmax())


@pytest.mark.parametrize(("through", "window"), [("all_tokens", 7), ("window", 4)])
def test_comparisons_equal_masked_softmax(through, window):
    layer = layer_with_super_tokens()
    row, column = 5, 9
    own = [(y, x) for y in range(7) for x in range(10) if through == "all_tokens" or (y // 4 == 1 and x // 4 == 2)]
    expected = torch.zeros(GRID)
    for queries, keys in zip(layer["queries"], layer["keys"], strict=True):
        affinity = torch.stack([queries[row * 10 + column] @ keys[y * 10 + x] for y, x in own])
        for (y, x), share in zip(own, affinity.softmax(dim=0), strict=True):
            expected[y, x] += share / 2

    looks = where_a_pixel_looks(recording_of(**layer), (0.95, 0.8), 1, 1, through, window)
    assert torch.allclose(looks, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("stage", [1, 3], ids=["super-tokens", "plain"])
def test_rows_are_what_the_layer_does(stage):
    # 18x14 tokens in stage 1, whose cells of 4 are padded
    model = SViTForImageClassification(tiny_config(num_attention_heads=[1, 2, 1, 4])).eval()
    attention = model.svit.stages[stage - 1].layers[0].attention
    channels = attention.self_attention.qkv.out_channels // 3
    with torch.no_grad():
        # values and projection leave the tokens as they are: what comes out is the matrix times the tokens
        attention.self_attention.qkv.weight[-channels:] = torch.eye(channels).view(channels, channels, 1, 1)
        attention.self_attention.projection.weight[:] = torch.eye(channels).view(channels, channels, 1, 1)
        attention.self_attention.qkv.bias[-channels:] = 0
        attention.self_attention.projection.bias[:] = 0
    kept = {}
    norm = next(m for m in model.svit.stages[stage - 1].layers[0].modules() if isinstance(m, torch.nn.LayerNorm))
    handles = [
        norm.register_forward_hook(lambda module, arguments, output: kept.update(tokens=output[0])),
        attention.register_forward_hook(lambda module, arguments, output: kept.update(output=output[0][0])),
    ]
    recording = record(model, torch.randn(3, 72, 56))
    for handle in handles:
        handle.remove()

    height, width = recording.layer(stage, 1).grid
    for y, x in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
        looks = where_a_pixel_looks(recording, ((x + 0.5) / width, (y + 0.5) / height), stage, 1)
        expected = torch.einsum("yx,yxc->c", looks, kept["tokens"])
        assert torch.allclose(kept["output"][:, y, x], expected, atol=1e-5, rtol=0)


def test_queries_and_keys_are_those_of_the_layer():
    # without super tokens, attending among all tokens is what the layer does
    model = SViTForImageClassification(tiny_config()).eval()
    recording = record(model, torch.randn(3, 64, 96))

    for point in ((0.0, 0.0), (0.7, 0.4), (1.0, 1.0)):
        does = where_a_pixel_looks(recording, point, 3, 1)
        same = where_a_pixel_looks(recording, point, 3, 1, "all_tokens")
        assert does.shape == (4, 6)
        assert torch.allclose(does, same, atol=TOLERANCE, rtol=0)
        assert does.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("point", [(-0.1, 0.5), (0.5, 1.01)], ids=str)
def test_point_outside_of_the_picture_is_refused(point):
    with pytest.raises(ValueError, match=r"`point` is \(.*from 0 to 1"):
        where_a_pixel_looks(recording_of(**layer_with_super_tokens()), point, 1, 1)


@pytest.mark.parametrize(
    ("stage", "layer", "named"), [(2, 1, "stage"), (0, 1, "stage"), (1, 2, "layer"), (1, 0, "layer")]
)
def test_layer_that_is_not_there_is_refused(stage, layer, named):
    with pytest.raises(ValueError, match=f"`{named}` is"):
        recording_of(**layer_with_super_tokens()).layer(stage, layer)


def test_layers_count_from_either_end():
    model = SViTForImageClassification(tiny_config()).eval()
    recording = record(model, torch.randn(3, 64, 64))

    assert recording.layer(-3, -1) is recording.layer(2, 2)
    assert [(layer.stage, layer.layer) for layer in recording.layers] == [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)]
