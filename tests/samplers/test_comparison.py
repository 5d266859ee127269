# SPDX-License-Identifier: Apache-2.0
"""The comparison of samplers as a program: pictures and objects of a parquet file, features of a tiny ViT."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from svit_hf.cli import main
from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS
from svit_hf.samplers.comparison import RANDOM, Example, compare_samplers, table_of


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def pictures(tmp_path):
    """Write three pictures of a disc, with masks."""
    y, x = np.mgrid[:40, :40]
    rows = []
    for number in range(3):
        disc = ((y - 20) ** 2 + (x - 14 - 5 * number) ** 2 < 80).astype(np.uint8)
        noise = np.random.default_rng(number).integers(0, 30, (40, 40, 3))
        rows.append({"image": png((disc[..., None] * 180 + noise).astype(np.uint8)), "mask": png(disc)})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    return tmp_path


@pytest.fixture
def vit(tmp_path):
    layout = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**layout, image_size=32, patch_size=4)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_program_writes_what_it_measured(pictures, vit, capsys):
    output = pictures / "measured.json"
    options = ["--image-size", "32", "--limit", "2", "--model", vit, "--output", output]
    assert main(["samplers", str(pictures), *map(str, options)]) == 0
    lines = capsys.readouterr().out.splitlines()
    measured = json.loads(output.read_text())["measured"]
    assert measured.keys() == {*SUPER_TOKEN_SAMPLERS, RANDOM}
    assert sorted(line.split()[0] for line in lines[2:-4]) == sorted(measured)
    assert f"super_token_sampler={','.join(name for name in measured if name != RANDOM)} " in lines[-1]
    kinds = {"features", "patches", "class", "pixels", "boundaries", "accuracy", "milliseconds"}
    assert all(values.keys() == kinds for values in measured.values())
    assert all(len(values) == 2 for kinds in measured.values() for values in kinds.values())
    # what looks at nothing keeps least
    assert measured[RANDOM]["pixels"] > measured["grid"]["pixels"]


def test_pictures_without_masks_have_no_objects():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    measured = compare_samplers(["grid", "hard"], [Example(picture, None)], cell_size=8, num_iterations=1)
    assert all(values.keys() == {"pixels", "milliseconds"} for values in measured.values())
    assert [row[0] for row in table_of(measured)[1:]] == sorted(measured, key=lambda name: measured[name]["pixels"][0])


def test_nothing_is_lost_where_all_patches_of_a_cell_are_equal(vit):
    model = ViTModel.from_pretrained(vit).eval()
    torch.nn.init.zeros_(model.embeddings.position_embeddings)
    keys = list(model.state_dict())
    # one colour for each cell of 2x2 patches of 4x4 pixels
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colours.repeat(8, axis=0).repeat(8, axis=1))
    measured = compare_samplers(["grid"], [Example(picture, None)], 8, 1, model, model_cell_size=2)
    assert measured["grid"]["features"][0] < 1e-5
    assert measured["grid"]["patches"][0] == pytest.approx(1, abs=1e-5)
    assert measured["grid"]["class"][0] == pytest.approx(1, abs=1e-5)
    assert measured[RANDOM]["features"][0] > 0.1
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_takes_pictures_of_another_size(vit):
    model = ViTModel.from_pretrained(vit).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    measured = compare_samplers(["soft"], [Example(picture, None)], 8, 1, model)
    assert measured["soft"]["patches"][0] <= 1


def test_rows_without_pictures_are_named(tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist([{"label": 1}]), tmp_path / "test.parquet")
    assert main(["samplers", str(tmp_path)]) == 3
    assert "test.parquet, row 0: there is no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "`limit` is 0"),
        (["--samplers", "softer"], "`samplers` has ['softer']"),
        (["--split", "nowhere"], "has no split 'nowhere'"),
        (["--model", "nothing"], "`model` is 'nothing'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_named(pictures, options, message, capsys):
    assert main(["samplers", str(pictures), *options]) in (2, 3)
    assert message in capsys.readouterr().err


def test_nuclei(real_images, tmp_path):
    output = tmp_path / "measured.json"
    options = ["--limit", "2", "--image-size", "128", "--samplers", "grid", "position", "--output", output]
    assert main(["samplers", str(real_images / "dsb2018_nuclei"), *map(str, options)]) == 0
    measured = json.loads(output.read_text())["measured"]
    # regions of about 8x8 pixels cut few nuclei
    assert all(torch.tensor(measured[name]["accuracy"]).min() > 0.9 for name in ("grid", "position"))
