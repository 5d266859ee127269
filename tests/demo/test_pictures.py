# SPDX-License-Identifier: Apache-2.0
"""Whatever a visitor brings ends in a picture or in a sentence; and there are pictures to try."""

import numpy as np
import pytest
from PIL import Image

from svit_hf.demo.pictures import LIMITS, choose_examples, describe_upload, read_upload
from svit_hf.errors import DataError


def test_picture_comes_upright_and_without_a_note(tmp_path):
    picture = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    upload = read_upload(str(tmp_path / "turned.jpg"))
    assert (upload.picture.size, upload.picture.mode, upload.note) == ((20, 30), "RGB", "")


@pytest.mark.parametrize(
    ("name", "options", "mode", "note"),
    [
        (
            "moving.gif",
            {"save_all": True, "append_images": [Image.new("L", (8, 8), 9)]},
            "L",
            "Of 2 pictures in the file",
        ),
        ("print.jpg", {}, "CMYK", "CMYK"),
        ("print.tiff", {}, "CMYK", "CMYK"),
        ("16.png", {}, "I;16", ""),
    ],
)
def test_unusual_picture_is_shown_and_explained(tmp_path, name, options, mode, note):
    Image.new(mode, (8, 8), 3).save(tmp_path / name, **options)
    upload = read_upload(str(tmp_path / name))
    assert (upload.picture.mode, upload.picture.size) == ("RGB", (8, 8))
    assert note in upload.note
    assert bool(upload.note) == bool(note)


def test_bad_files_are_refused_in_a_sentence(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    bad = {
        "text.jpg": (b"no picture", "it is no picture"),
        "empty.png": (b"", "it is no picture"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:900], "it is damaged, or not all of it is there"),
        "drawing.svg": (
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
            "it is no picture",
        ),
        "post.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no picture"),
        "large.png": (b"\0" * (LIMITS.max_bytes + 1), "the demo takes 17"),
    }
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_upload(str(tmp_path / name))


# the second is more than Pillow itself opens
@pytest.mark.parametrize("edge", [6_000, 14_000])
def test_picture_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, edge):
    Image.new("1", (edge, edge)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="too large: the demo takes 32 million pixels"):
        read_upload(str(tmp_path / "bomb.png"))


def test_file_that_is_gone_is_no_traceback(tmp_path):
    with pytest.raises(DataError, match="no longer there"):
        read_upload(str(tmp_path / "gone.png"))


def test_examples_of_the_quickstart_go_with_its_model(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "quickstart.json").write_text("{}")
    for name in "21":
        Image.new("L", (8, 8)).save(tmp_path / f"images/{name}.png")
    for model in (tmp_path, tmp_path / "model"):
        assert [file.name for file in choose_examples([], [str(model)])] == ["1.png", "2.png"]


def test_named_examples_win_and_bad_ones_are_passed_over(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("bad")
    assert choose_examples([str(tmp_path)], ["model"]) == [tmp_path / "good.png"]


def test_other_models_have_the_photographs_of_scikit_learn(tmp_path):
    pytest.importorskip("sklearn")
    assert [file.name for file in choose_examples([], [str(tmp_path)])] == ["china.jpg", "flower.jpg"]


def test_upload_is_described_with_a_small_preview(tmp_path):
    assert describe_upload(None) == ("", None)
    (tmp_path / "bad.png").write_text("<script>")
    text, preview = describe_upload(str(tmp_path / "bad.png"))
    assert text.startswith('<p class="error" role="alert">This file cannot be shown: it is no picture')
    assert preview is None
    Image.new("CMYK", (1000, 500)).save(tmp_path / "print.jpg")
    text, preview = describe_upload(str(tmp_path / "print.jpg"))
    assert text.startswith('<p class="note">')
    assert preview.size == (480, 240)
