# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from PIL import Image

from svit_hf import SViTImageProcessorPil
from svit_hf.errors import SViTError
from svit_hf.export.pictures import read_pictures


PROCESSOR = SViTImageProcessorPil(size={"shortest_edge": 32})


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
