# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from dense_models import pretrained_config, save_model
from PIL import Image

from svit_hf import SViTForImageClassification


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return the folder of a classifier whose batch norms have seen pictures."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    model = SViTForImageClassification(pretrained_config()).train()
    model(torch.randn(4, 3, 64, 64))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(checkpoint, tmp_path_factory):
    """Return a function that gives the folder of a saved model for a task, with two classes and the default head."""
    folders = {}

    def save(task):
        if task not in folders:
            torch.manual_seed(1)
            folders[task] = tmp_path_factory.mktemp(task)
            save_model(task, folders[task], ["background", "square"], backbone=checkpoint)
        return str(folders[task])

    return save


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """Return a folder of pictures of one bright square with masks of 0 and 1, COCO's JSON beside them."""
    folder = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "test" / kind).mkdir(parents=True)
    for number in range(5):
        left, top = random.integers(0, 32, 2)
        mask = np.zeros((70, 90), dtype=np.uint8)
        mask[top : top + 32, left : left + 32] = 1
        Image.fromarray(mask).save(folder / "test" / "masks" / f"{number}.png")
        Image.fromarray(mask * 128 + 40).convert("RGB").save(folder / "test" / "images" / f"{number}.png")
    return folder
