# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
import tyro
from PIL import Image
from tiny import tiny_config
from transformers import ViTConfig, ViTForImageClassification

from svit_hf import SViTForImageClassification, SViTImageProcessorPil, cli
from svit_hf.errors import SViTError
from svit_hf.export import command
from svit_hf.export.check import Comparison
from svit_hf.export.command import ExportCommand, read_pictures
from svit_hf.export.exporting import ExportError, ExportFolder


PROCESSOR = SViTImageProcessorPil(size={"shortest_edge": 32})


@pytest.fixture
def model_dir(tmp_path):
    SViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "run" / "model")
    SViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


@pytest.fixture
def exported(monkeypatch):
    """Replace the export itself, which is tested elsewhere; return the list of what it was called with."""
    calls = []

    def export(model, output_dir, options, *, images, image_processor, runtime):
        calls.append((model, options, images, image_processor))
        sizes = Comparison([[2, 3, 64, 69]], 2, 3e-7, 1e-7, 4.0, 2.0, 1.0)
        pictures = None if images is None else Comparison([[2, 3, 64, 64]], 2, 0.5, 0.02, 4.0, 2.0, 0.5)
        return ExportFolder(output_dir, options, 1e-4, sizes, pictures, 1_250_000, 61.2, {})

    monkeypatch.setattr(command, "export_classifier", export)
    return calls


def run(*arguments):
    return tyro.cli(ExportCommand, args=[str(argument) for argument in arguments]).run()


def test_command_exports_and_says_what_it_found(model_dir, tmp_path, exported, capsys):
    assert run(model_dir, tmp_path / "out", "--opset", "18", "--no-fold") == 0
    model, options, images, processor = exported[0]
    weights = SViTForImageClassification.from_pretrained(model_dir).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (options.format, options.quantize, options.opset, options.fold) == ("onnx", "none", 18, False)
    assert images is None
    assert processor.size == {"shortest_edge": 64}
    summary, _, next_steps = capsys.readouterr().out.partition("\n\n")
    assert f'onnxruntime.InferenceSession("{tmp_path / "out"}/model.onnx")' in next_steps
    lines = dict(line.split("  ", maxsplit=1) for line in summary.splitlines())
    assert {name: text.strip() for name, text in lines.items() if name != "written to"} == {
        "program": "onnx, float32, 1.25 MB",
        "compared on": "batches of 2x64x69 pixels",
        "largest difference": "3.00e-07, the largest logit being 4.00e+00",
        "tolerance": "1.00e-04; found 3.00e-07, see check.json",
        "time": "61 s",
    }


def test_run_folder_stands_for_its_model(model_dir, tmp_path, exported):
    assert run(model_dir.parent, tmp_path / "out") == 0
    assert exported[0][0].config.hidden_sizes == tiny_config().hidden_sizes


def test_pictures_are_prepared_and_their_numbers_said(model_dir, tmp_path, exported, capsys):
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        Image.new("RGB", (80, 70)).save(tmp_path / "pictures" / f"{index}.jpg")
    assert run(model_dir, tmp_path / "out", "--quantize", "int8", "--calibration", tmp_path / "pictures") == 0
    assert exported[0][2].shape == (3, 3, 64, 64)
    printed = capsys.readouterr().out
    assert "0.020, 1.0 % of the mean logit" in printed
    assert "unchanged top-1      50.0 %" in printed


@pytest.mark.parametrize(
    "arguments", [["--quantize", "int8"], ["--calibration", "pictures"]], ids=lambda words: words[0]
)
def test_int8_and_pictures_go_together(model_dir, tmp_path, arguments):
    with pytest.raises(
        ExportError,
        match="int8 needs a folder of pictures to be calibrated with and compared on, and nothing else does",
    ):
        run(model_dir, tmp_path / "out", *arguments)


def test_model_without_image_processor_cannot_be_calibrated(model_dir, tmp_path):
    (model_dir / "preprocessor_config.json").unlink()
    with pytest.raises(ExportError, match="no image processor to prepare pictures with"):
        run(model_dir, tmp_path / "out", "--quantize", "int8", "--calibration", tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"{}"),
        ("config.json", b'{"model_type": "svit", "hidden_sizes": "wide"}'),
        ("config.json", b'{"model_type": "svit", "num_labels": "many"}'),
        ("config.json", b"[]"),
        ("preprocessor_config.json", b'{"image_processor_type": 3}'),
    ],
    ids=["weights", "sizes", "labels", "list", "processor"],
)
def test_damaged_folder_is_named(model_dir, tmp_path, file, content):
    (model_dir / file).write_bytes(content)
    with pytest.raises(SViTError, match=r"`model` is '.*model', (which|whose image processor) cannot be loaded"):
        run(model_dir, tmp_path / "out")


def test_model_of_another_kind(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="a vit model; expected is svit"):
        run(tmp_path, tmp_path / "out")


# Transformers that is too old for any export is told so first
@pytest.mark.newest
def test_exit_status_and_message_of_a_model_that_cannot_be_exported(model_dir, tmp_path, capsys):
    assert cli.main(["export", str(model_dir), str(tmp_path / "out"), "--image-size", "20"]) == 2
    assert "`image_size` is 20x20" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert json.loads((model_dir / "config.json").read_text())["model_type"] == "svit"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of five grey pictures, one shade each, in two folders."""
    for index in range(5):
        path = tmp_path / f"part{index // 3}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (40, 36), index * 40).save(path)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_all_pictures_are_read_in_order(folder):
    pixel_values = read_pictures(folder, PROCESSOR, 100)
    assert pixel_values.shape == (5, 3, 32, 32)
    assert torch.equal(pixel_values.mean(dim=(1, 2, 3)).argsort(), torch.arange(5))


def test_fewer_pictures_are_spread_evenly(folder):
    everything, three = read_pictures(folder, PROCESSOR, 100), read_pictures(folder, PROCESSOR, 3)
    assert torch.equal(three, everything[::2])


def test_broken_picture_is_named(folder):
    (folder / "part1" / "9.png").write_bytes(b"no picture")
    with pytest.raises(SViTError, match=r"`calibration` holds '.*9\.png', which cannot be read"):
        read_pictures(folder, PROCESSOR, 100)


def test_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(SViTError, match="a folder with 0 pictures; it needs at least 2"):
        read_pictures(tmp_path, PROCESSOR, 100)


def test_one_picture_is_too_few(folder):
    with pytest.raises(SViTError, match="`num_pictures` is 1; it has to be at least 2"):
        read_pictures(folder, PROCESSOR, 1)
