# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scripts import compare_dense

from svit_hf import SViTBackbone, SViTConfig
from svit_hf.recipes import segment_semantic
from svit_hf.training.starting_model import TINY


@pytest.fixture
def words(tmp_path):
    for split, count in (("train", 8), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((64, 64), dtype=np.uint8)
            mask[4 * number : 4 * number + 32, 8:40] = 255
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{number}.png")
            Image.fromarray(mask // 2 + 40).convert("RGB").save(tmp_path / "data" / split / "images" / f"{number}.png")
    folders = f"--output-dir {tmp_path / 'runs'} --data {tmp_path / 'data'}"
    rest = "--labels background square --binary --image-size 64 --crop-size 64 --scale 0.9 1 --epochs 1"
    return [*f"{folders} {rest}".split(), "--networks"]


def test_compares_networks_seed_by_seed_and_trains_each_once(words, tmp_path, capsys):
    head = ["--head-options", json.dumps({"num_queries": 4, "encoder_layers": 1, "decoder_layers": 2})]
    networks = ["random", "Swin", "random:mask2former"]
    words += [*networks, *head, "--seeds", "3", "--metric", "iou_square"]
    table = compare_dense.main(words)
    assert "random:mask2former, seed 3" in capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*-seed-3/report.json"))]
    assert [report["recipe"]["task"]["head"] for report in reports] == ["", "", "mask2former"]
    scores = [report["metrics"]["ema"]["iou_square"] for report in reports]
    for name, score, report in zip(networks, scores, reports, strict=True):
        assert rows[name][1] == f"{report['num_parameters']:,}"
        assert float(rows[name][2]) == pytest.approx(score, abs=5e-4)
        assert float(rows[name][5]) == pytest.approx(score - scores[0], abs=1e-3)
    assert compare_dense.main(words) == table
    assert "seed 3:" not in capsys.readouterr().out


def test_the_backbones_have_about_as_many_parameters():
    recipe = segment_semantic()
    recipe = replace(recipe, task=replace(recipe.task, labels=("background", "square")))
    backbones = [compare_dense.make_peer(name, recipe).backbone for name in compare_dense.PEERS]
    backbones.append(SViTBackbone(SViTConfig(**TINY)))
    sizes = [sum(parameter.numel() for parameter in backbone.parameters()) for backbone in backbones]
    assert max(sizes) < 1.05 * min(sizes)
