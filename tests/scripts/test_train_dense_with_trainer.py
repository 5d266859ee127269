# SPDX-License-Identifier: Apache-2.0
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from dense_models import OPTIONS, pretrained_config
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

from svit_hf import SViTForImageClassification


SCRIPT = Path(__file__).parents[2] / "scripts" / "train_dense_with_trainer.py"


@pytest.fixture
def main():
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_squares(folder, count, seed):
    """Write pictures of one bright square, their masks, and YOLO's files of boxes."""
    random = np.random.default_rng(seed)
    for kind in ("images", "masks", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        left, top = random.integers(0, 32, 2)
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[top : top + 32, left : left + 32] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        Image.fromarray(mask // 2 + 40).convert("RGB").save(folder / "images" / f"{number}.png")
        box = [(left + 16) / 64, (top + 16) / 64, 0.5, 0.5]
        (folder / "labels" / f"{number}.txt").write_text(" ".join(map(str, [0, *box])))


@pytest.fixture
def squares(tmp_path):
    write_squares(tmp_path / "data" / "train", 16, seed=1)
    write_squares(tmp_path / "data" / "test", 5, seed=2)
    SViTForImageClassification(pretrained_config()).save_pretrained(tmp_path / "start")
    return tmp_path


def options(folder, task, head, **more):
    given = {
        "--task": task,
        "--data": folder / "data",
        "--output-dir": folder / "run",
        "--backbone": folder / "start",
        "--width": 32,
        "--image-size": 64,
        "--scale": (1, 1),
        "--head-options": json.dumps(OPTIONS[head]),
        "--batch-size": 4,
        "--learning-rate": 5e-3,
    }
    flat = []
    for name, value in (given | more).items():
        flat += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return flat


def test_learns_to_segment_and_saves_for_a_pipeline(main, squares, capsys):
    more = {"--labels": ("background", "square"), "--epochs": 8}
    metrics = main([*options(squares, "semantic_segmentation", "upernet", **more), "--binary"])
    assert metrics["iou_square"] > 0.8
    assert f"iou_square {metrics['iou_square']:.4f}" in capsys.readouterr().out
    assert json.loads((squares / "run" / "metrics.json").read_text()) == metrics
    with Image.open(squares / "run" / "predictions.png") as sheet:
        assert sheet.size == (4 * 256, 2 * 256)
    found = pipeline("image-segmentation", str(squares / "run"))(str(squares / "data/test/images/0.png"))
    assert {entry["label"] for entry in found} == {"background", "square"}


def test_trains_a_detector_and_saves_it(main, squares):
    (squares / "data" / "classes.txt").write_text("square\n")
    metrics = main(options(squares, "detection", "d_fine", **{"--epochs": 1}))
    assert 0 <= metrics["map"] <= 1
    model = AutoModelForObjectDetection.from_pretrained(squares / "run")
    assert model.config.id2label == {0: "square"}
    assert AutoImageProcessor.from_pretrained(squares / "run").size["height"] == 64


def test_classes_without_names_are_asked_for(main, squares):
    with pytest.raises(SystemExit, match="give them with --labels"):
        main(options(squares, "detection", "d_fine"))
