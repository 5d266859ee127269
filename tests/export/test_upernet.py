# SPDX-License-Identifier: Apache-2.0
"""UperNet on an SViT becomes an ONNX program that says the same; other heads are refused."""

import json

import numpy as np
import pytest
import torch
from dense_models import save_model

from svit_hf import cli
from svit_hf.export.loading import load_program
from svit_hf.tasks.models import backbone_of


def save(task, folder):
    torch.manual_seed(0)
    model = save_model(task, folder, size=(64, 96))
    # batch norms that have seen something, so that folding them is worth a check
    backbone_of(model).train()(torch.randn(2, 3, 64, 96))
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.newest
def test_the_program_says_what_the_model_does(tmp_path, capsys):
    model = save("semantic_segmentation", tmp_path / "model")
    assert cli.main(["export", str(tmp_path / "model"), str(tmp_path / "program")]) == 0
    printed = capsys.readouterr().out
    assert "compared on            batches of 1x64x96, 2x64x96, 3x64x96 pixels" in printed
    assert printed.endswith(f'onnxruntime.InferenceSession("{tmp_path / "program"}/model.onnx")\n')
    program = load_program(tmp_path / "program")
    pixels = torch.randn(5, 3, 64, 96)
    with torch.no_grad():
        expected = model(pixels).logits
    np.testing.assert_allclose(program(pixels), expected, atol=1e-4 * expected.abs().max())
    check = json.loads((tmp_path / "program" / "check.json").read_text())
    assert check["sizes"]["shapes"] == [[1, 3, 64, 96], [2, 3, 64, 96], [3, 3, 64, 96]]
    assert check["error"] <= check["tolerance"]
    assert (tmp_path / "program" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("detection", [], "with the head 'd_fine'; of the heads for segmentation and detection 'upernet' is exported"),
        ("semantic_segmentation", ["--format", "pt2"], "`format` is 'pt2'; UperNet is exported to ONNX"),
        ("semantic_segmentation", ["--format", "web"], "`format` is 'web'; UperNet is exported to ONNX"),
        ("semantic_segmentation", ["--image-size", "96"], "`image_size` is 96; UperNet is exported to ONNX"),
    ],
    ids=["detector", "format", "page", "size"],
)
def test_what_is_not_exported_is_refused(task, options, message, tmp_path, capsys):
    save(task, tmp_path / "model")
    assert cli.main(["export", str(tmp_path / "model"), str(tmp_path / "program"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "program").exists()
