# SPDX-License-Identifier: Apache-2.0
import io
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import datasets
import pytest
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessorPil


SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune_with_trainer.py"


@pytest.fixture
def main():
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_images(path, num_images):
    def examples():
        for index in range(num_images):
            file = io.BytesIO()
            Image.new("RGB", (40, 40), (40 + 170 * (index % 2), 90, 120)).save(file, "PNG")
            yield {"image": {"bytes": file.getvalue(), "path": None}, "label": index % 2}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    datasets.Dataset.from_list(list(examples()), features=features).to_parquet(str(path))


def test_learns_new_classes_and_saves_them(main, tmp_path, capsys):
    write_images(tmp_path / "train.parquet", 32)
    write_images(tmp_path / "test.parquet", 9)
    SViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "start")
    SViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "start")
    options = ["--model", tmp_path / "start", "--data", tmp_path, "--output-dir", tmp_path / "run"]
    metrics = main([*map(str, options), "--epochs", "6", "--batch-size", "8"])
    assert metrics["eval_accuracy"] == 1
    assert "100.00% of 9 images" in capsys.readouterr().out
    saved = SViTForImageClassification.from_pretrained(tmp_path / "run")
    assert saved.config.id2label == {0: "dark", 1: "light"}
