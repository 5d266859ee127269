# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hub, a client of it that does not wait, and the folder of a finished training run."""

import json
import shutil
import time

import pytest
from hub.hub_stand_in import hub_stand_in
from huggingface_hub import HfApi, constants
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessorPil, save_with_code
from svit_hf.hub.model_card import build_model_card, card_text_of_run


LABELS = ["cat", "dog", "emu", "fox", "gnu"]


@pytest.fixture
def hub(monkeypatch):
    # both are constants that huggingface_hub takes from the environment when it is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token="a token")


@pytest.fixture
def waits(monkeypatch):
    """Do not wait, and return the seconds that would have been waited."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def report():
    """Return what a training run writes to report.json."""
    return {
        "command": "svit-hf train --recipe finetune",
        "recipe": {
            "name": "finetune",
            "model": {"name_or_path": "", "config": {"depths": [1, 2, 1, 1]}},
            "data": {"path": "pets/five", "format": "hub", "config_name": None},
            "distillation": {"teacher": ""},
        },
        "data": {
            "path": "pets/five",
            "description": "pets/five, split train, indexed, 800 images, 5 classes",
            "train_split": "train",
            "eval_split": "test",
            "num_train": 800,
            "num_eval": 200,
            "label_names": LABELS,
        },
        "metrics": {
            "raw": {"num_images": 199, "num_broken": 1, "accuracy": 0.8140703517587939, "top5_accuracy": 1.0},
            "ema": {
                "num_images": 199,
                "num_broken": 1,
                "accuracy": 0.8291457286432161,
                "accuracy_interval": [0.7706, 0.8751],
                "top5_accuracy": 1.0,
                "loss": None,
                "classes": [{"name": "cat", "num_images": 40, "num_hits": 33}],
            },
        },
        "chosen": "ema",
        "epoch": 7,
        "update": 350,
        "num_parameters": 12345,
        "versions": {"svit-hf": "0.0.7", "torch": "1.2.3", "Python": "3.99"},
        "commit": "0123abc",
        "device": "cpu",
        "seconds": 61.7,
        "bad_images": 3,
    }


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """Save a model with its code, once for all tests."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    config = tiny_config(id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)})
    save_with_code(SViTForImageClassification(config), folder, SViTImageProcessorPil(size={"shortest_edge": 64}))
    return folder


@pytest.fixture
def model_folder(saved_model, tmp_path):
    """Return the folder of a model with code and without a card."""
    return shutil.copytree(saved_model, tmp_path / "alone")


@pytest.fixture
def run_folder(saved_model, tmp_path, report):
    """Return the folder of a finished run, with the model and its card, and what else is in it."""
    run = tmp_path / "run"
    shutil.copytree(saved_model, run / "model")
    model = SViTForImageClassification.from_pretrained(saved_model)
    build_model_card(model, card_text_of_run(report, location=str(run / "model"))).save(run / "model/README.md")
    (run / "report.json").write_text(json.dumps(report))
    (run / "checkpoints").mkdir()
    (run / "checkpoints/optimizer.pt").write_bytes(b"momentum")
    (run / "log.jsonl").write_text("{}\n")
    return run
