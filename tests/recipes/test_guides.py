# SPDX-License-Identifier: Apache-2.0
"""The commands of the guides to training, and of the recipes' docstrings, on a model and pictures of test size."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from other_vision_transformers import make
from PIL import Image
from square_pictures import write_squares
from tiny import tiny_config

from svit_hf import SViTConfig, SViTForImageClassification, SViTImageProcessorPil, cli
from svit_hf.recipes import RECIPES
from svit_hf.recipes.command import find_recipe


GUIDES = Path(__file__).parents[2] / "docs" / "guides"
LABELS = ("cat", "dog")
SIZES = ("hidden_sizes", "depths", "num_attention_heads", "super_token_sizes")
# what makes the heads of segmentation and detection tiny
SMALL_TRANSFORMER = {"num_queries": 6, "encoder_layers": 1, "decoder_layers": 2}
SMALL_HEADS = {
    "semantic_segmentation": {"pool_scales": [1, 2]},
    "instance_segmentation": SMALL_TRANSFORMER | {"num_attention_heads": 2, "train_num_points": 64},
    "detection": SMALL_TRANSFORMER | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
# the images of an update are fewer here, and so are epochs; nothing else is changed
TEST_SIZE = {
    "optimization.epochs": 1,
    "optimization.warmup_epochs": 0,
    "optimization.batch_size": 4,
    "model.image_size": 64,
    "data.num_workers": 0,
}


def commands_of(text):
    """Return the arguments of every `svit-hf train`, whatever starts it."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^.*(?:svit-hf|-m svit_hf|slurm_train\.sh) .*--recipe.*$", joined, re.MULTILINE)
    lines = [line.strip() for line in lines if not line.rstrip().endswith("...")]
    return [shlex.split(line[line.index("--recipe") :]) for line in lines if "`" not in line]


GUIDE_COMMANDS = [
    pytest.param(arguments, id=f"{name}-{number}")
    for name in ("pretrain.md", "finetune.md", "segment_and_detect.md")
    for number, arguments in enumerate(commands_of((GUIDES / name).read_text(encoding="utf-8")))
]
RECIPE_COMMANDS = [
    pytest.param(arguments, id=name)
    for name, recipe in RECIPES.items()
    for arguments in commands_of(recipe.__doc__ or "")
    # not again what a guide says
    if sorted(arguments) not in [sorted(parameters.values[0]) for parameters in GUIDE_COMMANDS]
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return a folder with what the commands name: pictures, and models of these classes."""
    folder = tmp_path_factory.mktemp("given")
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        for number in range(6):
            file = folder / "pictures" / split / LABELS[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    for name in ("cells", "boxes", "ade20k", "coco", "nuclei", "blood"):
        write_squares(folder / name, {"train": 5, "test": 2})
    shard = ["data", "shard", str(folder / "boxes"), str(folder / "shards"), "--task", "detection"]
    assert cli.main([*shard, "--annotations.clip-boxes"]) == 0
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    for name in ("svit-small-224", "svit-base-224", "svit-large-224", "runs/pictures/model"):
        SViTForImageClassification(tiny_config(num_labels=len(LABELS), **names)).save_pretrained(folder / name)
        SViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(folder / name)
    make("dinov2").save_pretrained(folder / "facebook" / "dinov2-small")
    SViTImageProcessorPil(size={"shortest_edge": 24}).save_pretrained(folder / "facebook" / "dinov2-small")
    return folder


def test_commands_are_found():
    assert len(GUIDE_COMMANDS) == 14
    assert {*RECIPES} == {arguments.values[0][1] for arguments in [*GUIDE_COMMANDS, *RECIPE_COMMANDS]}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [*GUIDE_COMMANDS, *RECIPE_COMMANDS])
def test_command_runs(arguments, given, tmp_path, monkeypatch):
    # the published layouts with a tiny model's fields
    for layout in ("small", "base", "large"):
        monkeypatch.setattr(SViTConfig, layout, lambda **fields: tiny_config(num_labels=len(LABELS), **fields))
    monkeypatch.chdir(given)
    arguments = list(arguments)
    arguments[arguments.index("--output-dir") + 1] = str(tmp_path / "run")
    recipe = find_recipe(arguments[arguments.index("--recipe") + 1])
    values = dict(TEST_SIZE)
    if recipe.task.name == "classification":
        values["data.path"] = "pictures"
    else:
        values |= {
            "task.width": 32,
            "task.crop_size": 0,
            "task.head_options": json.dumps(SMALL_HEADS[recipe.task.name]),
        }
        if recipe.task.name == "instance_segmentation":
            # masks without a class for each number
            values["task.labels"] = "square"
        if not recipe.model.name_or_path and "--model.name-or-path" not in arguments:
            values["model.config"] = json.dumps({name: getattr(tiny_config(), name) for name in SIZES})
    for name, value in values.items():
        arguments += [f"--{name}", str(value)]
    assert cli.main(["train", *arguments]) == 0
    assert (tmp_path / "run" / "model" / "README.md").is_file() or recipe.task.name != "classification"
    assert (tmp_path / "run" / "report.json").is_file()
