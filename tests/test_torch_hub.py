# SPDX-License-Identifier: Apache-2.0
"""`torch.hub` with this checkout as its source."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

import svit_hf


ROOT = str(Path(__file__).parents[1])


@pytest.mark.parametrize(("name", "depths"), [("svit_small", [3, 5, 9, 3]), ("svit_large", [4, 7, 19, 8])])
def test_layout_is_made_untrained(name, depths):
    with torch.device("meta"):
        model = torch.hub.load(ROOT, name, source="local", num_labels=4)
    assert isinstance(model, svit_hf.SViTForImageClassification)
    assert (model.config.depths, model.num_labels) == (depths, 4)


def test_saved_model_is_loaded(tmp_path):
    model = svit_hf.SViTForImageClassification(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    loaded = torch.hub.load(ROOT, "pretrained", str(tmp_path), source="local")
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images).logits, model(images).logits)
