# SPDX-License-Identifier: Apache-2.0
"""The Pillow image processor where torchvision is not installed."""

import numpy as np
from official_evaluation import TOLERANCE, assert_close, official_transform, photo
from PIL import Image

from svit_hf import SViTImageProcessorPil


def test_pillow_processor_works(fresh_python, tmp_path):
    np.save(tmp_path / "photo.npy", photo())
    code = """
import numpy, sys
from svit_hf import SViTImageProcessorPil
from transformers.utils import is_torchvision_available
assert not is_torchvision_available()
numpy.save("values.npy", SViTImageProcessorPil()(numpy.load("photo.npy"), return_tensors="np").pixel_values)
assert "torchvision" not in sys.modules
try:
    import svit_hf.model.image_processing_svit
except ImportError as error:
    print(error)
"""
    assert "torchvision" in fresh_python("-W", "error", "-c", code, hidden=["torchvision"])
    expected = official_transform(Image.fromarray(photo()))[None]
    assert_close(np.load(tmp_path / "values.npy"), expected, TOLERANCE[SViTImageProcessorPil])
