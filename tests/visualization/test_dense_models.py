# SPDX-License-Identifier: Apache-2.0
"""What `svit-hf visualize` draws of models for segmentation and detection."""

import numpy as np
import pytest
import torch
from dense_models import save_model
from PIL import Image

from svit_hf import cli
from svit_hf.tasks.saved_models import open_task_model
from svit_hf.visualization import pictures


@pytest.mark.parametrize("task", ["semantic_segmentation", "instance_segmentation", "detection"])
def test_sheets_show_super_tokens_and_what_the_model_finds(task, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    save_model(task, tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    drawn = []
    monkeypatch.setattr(pictures, "draw_sheet", lambda rows, title: drawn.append(rows) or Image.new("RGB", (9, 9)))
    arguments = ["visualize", str(tmp_path / "model"), str(tmp_path / "noise.png"), "--output-dir"]
    assert cli.main([*arguments, str(tmp_path / "looked")]) == 0
    assert "1 sheets" in capsys.readouterr().out
    (rows,) = drawn
    captions = [panel.caption for panel in rows[0].panels]
    assert captions == ["the picture", "what the model finds"]
    assert any("super tokens" in [panel.caption for panel in row.panels] for row in rows[1:])
    # the same model on the same picture, by itself
    expected = open_task_model(tmp_path / "model").draw(Image.fromarray(noise))
    found = rows[0].panels[1].drawing
    assert found.size == rows[0].panels[0].drawing.size
    np.testing.assert_array_equal(found, expected.resize(found.size, Image.Resampling.BICUBIC))
    assert cli.main([*arguments, str(tmp_path / "other"), "--label", "cell"]) == 2
    assert "are for classifiers" in capsys.readouterr().err
