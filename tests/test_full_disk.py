# SPDX-License-Identifier: Apache-2.0
"""Every command on a disk that is really full: a message, nothing left behind, and the same command afterwards.

Training has a file of its own, `training/test_full_disk.py`.
"""

import shutil

import pytest
import torch
from picture_data import picture, write_parquet
from tiny import tiny_config

from svit_hf import SViTConfig, SViTForImageClassification, SViTImageProcessorPil, cli, save_with_code
from svit_hf.convert.key_mapping import to_official


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder with a model, images and an official checkpoint."""
    folder = tmp_path_factory.mktemp("inputs")
    names = {"id2label": {0: "even", 1: "odd"}, "label2id": {"even": 0, "odd": 1}}
    model = SViTForImageClassification(tiny_config(num_labels=2, **names))
    save_with_code(model, folder / "model", SViTImageProcessorPil(size={"shortest_edge": 64}))
    write_parquet(folder / "data" / "train.parquet", range(60))
    write_parquet(folder / "data" / "test.parquet", range(40))
    official = SViTForImageClassification(SViTConfig.small(num_labels=2))
    weights = {to_official(key): tensor for key, tensor in official.state_dict().items()}
    torch.save({"model": weights}, folder / "official.pth")
    return folder


COMMANDS = {
    "predict": ["predict", "MODEL", "DATA", "--output", "DISK/out", "--data.num-workers", "0"],
    "evaluate": ["evaluate", "MODEL", "--data.path", "DATA", "--output", "DISK/out.json", "--data.num-workers", "0"],
    "inspect": ["data", "inspect", "DATA", "--write-index", "DISK/out.json"],
    "shard": ["data", "shard", "DATA", "DISK/out"],
    "export": ["export", "MODEL", "DISK/out", "--format", "onnx"],
    "convert": ["convert", "CHECKPOINT", "DISK/out"],
    "visualize": ["visualize", "MODEL", "PICTURE", "--output-dir", "DISK/out"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("export", "convert"))) for name in COMMANDS]
)
def test_command_on_a_full_disk(inputs, small_disk, tmp_path, name, capsys):
    (tmp_path / "picture.png").write_bytes(picture(200, size=(80, 64)))
    places = {
        "MODEL": inputs / "model",
        "DATA": inputs / "data",
        "CHECKPOINT": inputs / "official.pth",
        "PICTURE": tmp_path / "picture.png",
        "DISK": small_disk,
    }
    command = COMMANDS[name]
    for place, path in places.items():
        command = [word.replace(place, str(path)) for word in command]
    filler = small_disk / "filler"
    for room in (0, 4096):
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        assert shutil.disk_usage(small_disk).free == room
        status = cli.main(command)
        said = capsys.readouterr().err
        # a small file may fit
        if status != 0:
            assert status == 2, said
            assert any(words in said for words in ("disk is full", "Make room", "No space left")), said
            assert "Traceback" not in said
            left = [path for path in small_disk.rglob("*") if path.is_file() and path != filler]
            assert left == [] or all("prediction.json" in path.name for path in left), left
        else:
            assert room, "a full disk was written to"
        filler.unlink()
    shutil.rmtree(small_disk / "out", ignore_errors=True)
    if name in ("convert", "export"):
        # what these write is larger than the whole disk
        return
    assert cli.main(command) == 0, capsys.readouterr().err
    assert [path for path in small_disk.rglob("*") if path.name.endswith(".tmp")] == []
