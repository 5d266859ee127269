# SPDX-License-Identifier: Apache-2.0
"""The comparison of ways to spend less on a vision transformer, with a tiny DINOv2 and a few pictures."""

import io
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from other_vision_transformers import give_no_positions
from PIL import Image
from scripts.token_reduction.__main__ import Results, loss_at, losses_of_pictures, main, print_features
from scripts.token_reduction.contestants import RandomDropping, TokenMerging, _match, contestants_of
from scripts.token_reduction.probes import extract, read_examples, score
from scripts.token_reduction.speed import FORMS, SETTINGS, compile_network, networks_of, run_in_onnx
from transformers import Dinov2Config, Dinov2Model


# against the model as it is, float32; the worst that was measured is 1e-6
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layout = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**layout, image_size=28, patch_size=4)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def own(model, pixels):
    return model(pixels).last_hidden_state


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of two classes, and others with masks of their bright half."""
    for name in ("classes", "masks"):
        (tmp_path / name).mkdir()
        for split, number in (("train", 6), ("test", 4)):
            rows = []
            for index in range(number):
                pixels = np.random.default_rng(index).integers(0, 60, (32, 32, 3), dtype=np.uint8)
                bright = np.zeros((32, 32), dtype=np.uint8)
                bright[:, 16 * (index % 2) :][:, :16] = 1
                pixels += 180 * (bright if name == "masks" else np.full_like(bright, index % 2))[..., None]
                row = {"image": png(pixels), "label": index % 2}
                rows.append(row | {"mask": png(bright)} if name == "masks" else row)
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / f"{split}.parquet")
    return tmp_path


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@torch.no_grad()
def test_every_contestant_gives_features_of_all_patches_and_leaves_the_model_alone(model):
    pixels = torch.randn(1, 3, 28, 36)
    expected = own(model, pixels)
    for name, settings in contestants_of(model).items():
        for setting, features in settings.items():
            states = features(pixels)
            assert states.shape == expected.shape, (name, setting)
            assert not torch.allclose(states, expected), (name, setting)
    assert torch.equal(own(model, pixels), expected)


@torch.no_grad()
@pytest.mark.parametrize("keep_differences", [False, True])
def test_merging_nothing_or_equal_patches_changes_nothing(model, keep_differences):
    pixels = torch.randn(2, 3, 28, 28)
    merging = TokenMerging(model, 0, keep_differences)
    torch.testing.assert_close(merging(pixels), own(model, pixels), **TOLERANCE)
    positions = model.embeddings.position_embeddings.clone()
    give_no_positions(model)
    pixels = torch.randn(1, 3, 4, 4).tile(1, 1, 7, 7)
    merging = TokenMerging(model, 0.1, keep_differences)
    torch.testing.assert_close(merging(pixels), own(model, pixels), **TOLERANCE)
    model.embeddings.position_embeddings.copy_(positions)


@torch.no_grad()
def test_tokens_are_merged_in_the_layers_that_have_a_share(model):
    pixels, counts = torch.randn(1, 3, 28, 28), []
    hooks = [
        layer.norm2.register_forward_hook(lambda module, args, output: counts.append(output.shape[1]))
        for layer in model.encoder.layer
    ]
    TokenMerging(model, {0: 0.3, 6: 0.1})(pixels)
    for hook in hooks:
        hook.remove()
    # of the class token and 49 patches
    assert counts == 6 * [35] + 6 * [30]
    of_each = TokenMerging(model, dict.fromkeys(range(12), 0.05))
    assert torch.equal(of_each(pixels), TokenMerging(model, 0.05)(pixels))


def test_tokens_join_the_one_most_like_them_but_none_the_class_token():
    keys = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(2))
    keys[0, 3] = keys[0, 0]
    normal = torch.nn.functional.normalize(keys[0], dim=-1)
    pairs = [(max((normal[odd] @ normal[even]).item() for even in (2, 4, 6, 8)), odd) for odd in (1, 3, 5, 7)]
    joining = [odd for _, odd in sorted(pairs)[-2:]]
    joined = _match(keys, 2)[0].tolist()
    assert joined[::2] == [0, 1, 2, 3, 4]
    assert sorted(joined[odd] for odd in (1, 3, 5, 7) if odd not in joining) == [5, 6]
    for odd in joining:
        assert joined[odd] == max(range(1, 5), key=lambda group: (normal[odd] @ normal[2 * group]).item())


@torch.no_grad()
def test_dropped_patches_get_the_features_of_a_neighbour(model):
    pixels = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(RandomDropping(model, 0)(pixels), own(model, pixels), **TOLERANCE)
    patches = RandomDropping(model, 0.5)(pixels)[0, 1:]
    assert len(patches.unique(dim=0)) == 49 - 24
    # of a few patches one neighbour at least is left
    grid = patches.unflatten(0, (7, 7))
    alike = (grid[1:] == grid[:-1]).all(-1).sum() + (grid[:, 1:] == grid[:, :-1]).all(-1).sum()
    assert alike >= 15


def test_losses_are_compared_at_the_same_time():
    points = [(0.8, 0.9999), (0.4, 0.99), (0.6, 0.999)]
    assert loss_at(0.5, points) == pytest.approx((0.01 * 0.001) ** 0.5)
    assert loss_at(0.6, points) == pytest.approx(0.001)
    assert loss_at(0.3, points) is None


def test_pictures_are_compared_one_by_one_at_the_same_time(capsys):
    losses = {
        # (contestant, setting, time): of pictures 0, 1 and 2; the last one was not tried with all settings
        ("ToMe", "mild", 0.8): (0.01, 0.01),
        ("ToMe", "strong", 0.6): (0.1, 0.3),
        ("merged once", "mild", 0.8): (0.001, 0.02, 0.5),
        ("merged once", "strong", 0.6): (0.1, 0.9),
        ("random dropping", "mild", 0.65): (0.5, 0.5),
    }
    rows = [
        {"data": "d", "size": 1, "picture": picture, "contestant": name, "setting": setting, "time": time}
        | {"class_token": 1.0, "patches": 1 - loss}
        for (name, setting, time), of_pictures in losses.items()
        for picture, loss in enumerate(of_pictures)
    ]
    found = losses_of_pictures(rows, 0.7)
    assert found.keys() == {"ToMe", "merged once"}
    assert found["ToMe"] == pytest.approx({0: 0.001**0.5, 1: 0.003**0.5})
    assert found["merged once"] == pytest.approx({0: 0.01, 1: 0.018**0.5})
    print_features(rows)
    printed = capsys.readouterr().out.split("less than by ToMe\n")[1]
    (line,) = (line for line in printed.splitlines() if line.startswith("merged once"))
    # at 0.8, 0.7 and 0.6 of the time, and where nothing was measured
    cells = [cell.strip() for cell in line.split("  ") if cell]
    assert cells == ["merged once", "10.50, 1 of 2", "72.08, 1 of 2", "500.00, 0 of 2", "-", "-"]


def test_half_a_row_of_a_stopped_run_is_measured_again(tmp_path):
    results = Results(tmp_path / "new" / "rows.jsonl", ("data", "size"))
    results.add(("a", 1), time=0.5)
    with results.path.open("a") as file:
        file.write('{"data": "a", "si')
    again = Results(results.path, ("data", "size"))
    assert ("a", 1) in again
    again.add(("a", 2), time=0.6)
    assert [json.loads(line)["size"] for line in results.path.read_text().splitlines()] == [1, 2]


def test_classifiers_learn_what_can_be_learnt(model, pictures):
    inputs, labels = extract(
        lambda pixels: pixels.flatten(2).transpose(1, 2), read_examples(pictures / "classes", 28, 6), 4
    )
    assert inputs.shape == (10, 6)
    assert labels.tolist() == [0, 1] * 5
    assert score(inputs, labels, 0) == 1
    random = torch.randn(400, 3)
    assert 0.3 < score(random, torch.arange(400) % 2, 0) < 0.7


def test_patches_are_told_by_masks(pictures):
    def brightness(pixels):
        patches = torch.nn.functional.avg_pool2d(pixels, 4).flatten(2).transpose(1, 2)
        return torch.cat([patches[:, :1], patches], dim=1)

    inputs, labels = extract(brightness, read_examples(pictures / "masks", 28, 6), 4)
    assert inputs.shape == (10, 49, 3)
    # columns 0 to 3 of 7 have more than half of their pixels on the left
    assert labels[0].unflatten(0, (7, 7))[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert score(inputs, labels, 0) > 0.9
    assert score(torch.randn_like(inputs), labels, 0) < 0.7


def test_program_measures_once_and_learns_from_features(model, pictures, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    common = ["--model", tmp_path / "model", "--data", pictures / "classes", "--output-dir", tmp_path / "results"]
    common += ["--contestants", "merged once", "ToMe", "--sizes", "28"]
    for _ in range(2):
        main([*map(str, ["features", *common, "--limit", "2"])])
        lines = (tmp_path / "results" / "features.jsonl").read_text().splitlines()
        assert len(lines) == 2 * 9
    printed = capsys.readouterr().out
    assert "classes, 28 pixels, 2 pictures" in printed
    assert "at equal time" in printed
    few = [*map(str, common[:-1]), "28", "--limit", "1", "--settings", "0.3", "0.065"]
    few[few.index(str(tmp_path / "results"))] = str(tmp_path / "few")
    main(["features", *few])
    rows = [*map(json.loads, (tmp_path / "few" / "features.jsonl").read_text().splitlines())]
    assert [(row["contestant"], row["setting"]) for row in rows] == [("merged once", "0.3"), ("ToMe", "0.065")]
    capsys.readouterr()
    main([*map(str, ["probe", *common, "--limit", "6", "--seeds", "2"])])
    printed = capsys.readouterr().out
    assert "classes, 28 pixels, 2 splits" in printed
    assert {line.split("  ")[0].split(":")[0] for line in printed.splitlines()[3:]} == {
        "the model as it is",
        "merged once",
        "ToMe",
    }
    assert len([*(tmp_path / "results" / "probe" / "classes-28").glob("*.pt")]) == 3


@torch.no_grad()
def test_networks_are_the_contestants_and_leave_the_model_alone(model):
    pixels = torch.randn(1, 3, 28, 28)
    expected = own(model, pixels)
    for name, setting, network in networks_of(model, SETTINGS):
        torch.testing.assert_close(network(pixels), contestants_of(model)[name][setting](pixels), **TOLERANCE)
    assert torch.equal(own(model, pixels), expected)


@pytest.mark.campaign
@torch.no_grad()
@pytest.mark.parametrize("name", ["merged twice", "ToMe"])
def test_networks_can_be_exported(model, name):
    pixels = torch.randn(1, 3, 28, 28)
    _, _, network = next(networks_of(model, [name]))
    expected = network(pixels)
    torch.testing.assert_close(run_in_onnx(network, torch.zeros_like(pixels))(pixels), expected, **TOLERANCE)


@pytest.mark.slow
def test_speed_is_measured_once_in_each_form(model, pictures, tmp_path, capsys, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    # of the compiler the front alone, which is what could refuse something, and for one contestant
    monkeypatch.setitem(FORMS, "compiled", partial(compile_network, backend="eager"))
    monkeypatch.delitem(FORMS, "ONNX Runtime")
    words = ["--model", tmp_path / "model", "--data", pictures / "classes", "--output-dir", tmp_path / "results"]
    words += ["--contestants", "ToMe", "--sizes", "28", "--limit", "2"]
    for _ in range(2):
        main([*map(str, ["speed", *words])])
        rows = [*map(json.loads, (tmp_path / "results" / "speed.jsonl").read_text().splitlines())]
        assert len(rows) == 2 * 2 * 2
    assert {row["contestant"] for row in rows if row["time"] == 1} == {"the model as it is"}
    assert max(row["difference"] for row in rows) < 1e-5
    printed = capsys.readouterr().out
    assert "classes, 28 pixels, 2 pictures" in printed
    assert len(printed.splitlines()) == 2 * (1 + 1 + 1 + 4)


def test_probe_without_features_and_unknown_contestants_are_named(model, pictures, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    common = ["--model", tmp_path / "model", "--data", pictures / "classes", "--output-dir", tmp_path / "results"]
    for words, message in (
        (["probe", *common], "`features` comes first"),
        (["features", *common, "--contestants", "merged thrice"], r"`--contestants` has ['merged thrice']"),
        (["features", *common, "--settings", "0.31"], r"`--settings` has ['0.31']"),
        (["features", *common, "--limit", "0"], "`--limit` and `--seeds` are at least 1"),
        (["speed", *common, "--contestants", "random dropping"], "allowed are ['merged once', 'merged twice'"),
    ):
        with pytest.raises(SystemExit):
            main([*map(str, words)])
        assert message in capsys.readouterr().err
