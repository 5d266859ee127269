# SPDX-License-Identifier: Apache-2.0
import pytest
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, save_with_code
from svit_hf.browser_demo.viewer import open_viewer


@pytest.fixture
def model_dir(tmp_path):
    """Return a folder with a model of five classes, whose cells are 4, 2, 1, 1."""
    names = ["<b>cat", "dog", "hen", "cow", "pig"]
    model = SViTForImageClassification(tiny_config(id2label=dict(enumerate(names))))
    save_with_code(model, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def viewer(model_dir):
    return open_viewer(str(model_dir))


@pytest.fixture
def picture_file(tmp_path):
    file = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((90, 60)).save(file)
    return str(file)
