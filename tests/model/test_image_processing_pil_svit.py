# SPDX-License-Identifier: Apache-2.0
"""The Pillow image processor where torchvision is not installed."""

import numpy as np
import pytest
import transformers
from official_evaluation import TOLERANCE, assert_close, official_transform, photo
from packaging.version import Version
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessor, SViTImageProcessorPil


class TestWithoutTorchvision:
    def test_pillow_processor_works(self, fresh_python, tmp_path):
        np.save(tmp_path / "photo.npy", photo())
        code = """
import numpy, sys
from svit_hf import SViTImageProcessorPil
numpy.save("values.npy", SViTImageProcessorPil()(numpy.load("photo.npy"), return_tensors="np").pixel_values)
assert "torchvision" not in sys.modules
try:
    import svit_hf.model.image_processing_svit
except ImportError as error:
    print(error)
"""
        assert "torchvision" in fresh_python("-c", code, hidden=["torchvision"])
        expected = official_transform(Image.fromarray(photo()))[None]
        assert_close(np.load(tmp_path / "values.npy"), expected, TOLERANCE[SViTImageProcessorPil])

    @pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.18"),
        reason="before transformers 5.18 AutoImageProcessor itself needs torchvision",
    )
    def test_auto_class_and_pipeline_take_it(self, fresh_python, tmp_path):
        SViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
        SViTImageProcessor(size=64).save_pretrained(tmp_path)
        Image.fromarray(photo()).save(tmp_path / "photo.png")
        code = """
import svit_hf
from transformers import AutoImageProcessor, pipeline
classify = pipeline("image-classification", model=".")
print(type(AutoImageProcessor.from_pretrained(".")).__name__, type(classify.image_processor).__name__)
print(len(classify("photo.png")))
"""
        printed = fresh_python("-c", code, hidden=["torchvision"]).splitlines()
        assert printed == ["SViTImageProcessorPil SViTImageProcessorPil", "5"]
