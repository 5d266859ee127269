# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN on an SViT finds squares; it needs a torchvision that is whole."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_models import pretrained_config
from PIL import Image
from safetensors import safe_open

from svit_hf import SViTForImageClassification


SCRIPT = Path(__file__).parents[2] / "scripts" / "train_mask_rcnn_with_torchvision.py"


@pytest.fixture
def script():
    extension = pytest.importorskip(
        "torchvision.extension", reason="torchvision is not installed", exc_type=ImportError
    )
    if not extension._has_ops():
        pytest.skip("this torchvision has no compiled operators, which Mask R-CNN needs")
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def squares(tmp_path):
    """Write pictures of two bright squares, each an object, and an SViT to start from."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((64, 64), dtype=np.uint8)
            for value, left in ((1, 2), (2, 34)):
                top = random.integers(2, 36)
                mask[top : top + 24, left : left + 24] = value
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{number}.png")
            picture = np.where(mask > 0, 200, 40).astype(np.uint8)
            Image.fromarray(picture).convert("RGB").save(tmp_path / "data" / split / "images" / f"{number}.png")
    SViTForImageClassification(pretrained_config()).save_pretrained(tmp_path / "start")
    return tmp_path


def test_a_pyramid_has_five_levels(script):
    pyramid = script.SViTPyramid(script.make_backbone(None, (64, 64)), 32)
    shapes = [tuple(level.shape) for level in pyramid(torch.randn(2, 3, 64, 96)).values()]
    assert shapes == [(2, 32, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3), (2, 32, 1, 2)]


def test_learns_to_find_squares(script, squares):
    options = ["--data", squares / "data", "--output-dir", squares / "run", "--labels", "square", "--image-size", 64]
    options += ["--backbone", squares / "start", "--width", 32, "--epochs", 12, "--learning-rate", "2e-3"]
    metrics = script.main([*map(str, options)])
    assert metrics["map_50"] > 0.5
    assert json.loads((squares / "run" / "metrics.json").read_text()) == pytest.approx(metrics, nan_ok=True)
    with safe_open(squares / "run" / "model.safetensors", "pt") as weights:
        assert any(name.startswith("backbone.body.") for name in weights.keys())  # noqa: SIM118 - it is no dict
