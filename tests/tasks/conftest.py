# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from dense_models import pretrained_config

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
