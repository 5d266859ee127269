# SPDX-License-Identifier: Apache-2.0
import pytest
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, save_with_code
from svit_hf.demo.viewer import Viewer
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.hub.remote_code import default_image_processor


def make_model():
    """Return a model of five classes, whose cells are 4, 2, 1, 1."""
    names = ["<b>cat", "dog", "hen", "cow", "pig"]
    return SViTForImageClassification(tiny_config(id2label=dict(enumerate(names)))).eval()


@pytest.fixture
def model_dir(tmp_path):
    save_with_code(make_model(), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def viewer():
    model = make_model()
    return Viewer("tiny", model, Preprocessing(default_image_processor(model.config)))


@pytest.fixture
def picture_file(tmp_path):
    file = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((90, 60)).save(file)
    return str(file)
