# SPDX-License-Identifier: Apache-2.0
"""`svit-hf visualize`: folders and globs, bad files, names, one page that needs nothing else, errors in a sentence."""

import base64
import io
import os
import re
import shutil

import pytest
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessorPil
from svit_hf.cli import main
from svit_hf.visualization import draw_rows, draw_sheet, draw_super_tokens, record
from svit_hf.visualization.pictures import find_pictures


@pytest.fixture
def model_dir(tmp_path):
    SViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "model")
    SViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, mode, size in (
        ("grey.png", "L", (50, 90)),
        ("deep/grey.png", "RGBA", (200, 40)),
        ("<b>&.png", "RGB", (64, 64)),
    ):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize(size).convert(mode).save(file)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_folder_with_a_bad_file(model_dir, pictures, tmp_path, capsys):
    (pictures / "bad.jpg").write_bytes(b"not a picture")
    out = tmp_path / "out"

    assert main(["visualize", str(model_dir), str(pictures), "--output-dir", str(out)]) == 3

    printed = capsys.readouterr()
    assert f"passed over {pictures / 'bad.jpg'}: it is no picture" in printed.err
    assert "3 sheets" in printed.out
    # two pictures of one name have a sheet each
    assert sorted(file.name for file in out.iterdir()) == ["<b>&.png", "grey-2.png", "grey.png", "index.html"]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
    # picture and reasons; six drawings of the last layer of the two stages with super tokens
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == 3 * (2 + 2 * 6)
    assert all(Image.open(io.BytesIO(base64.b64decode(image))).size == (288, 288) for image in images)
    assert re.findall(r'(?:src|href)="(?!data:)|url\(|<script|<link', page) == []


def test_all_layers_of_one_part(model_dir, pictures, tmp_path, capsys):
    arguments = ["--output-dir", str(tmp_path / "out"), "--layers", "all", "--parts", "attention", "--point", "0", "1"]

    assert main(["visualize", str(model_dir), str(pictures / "g*.png"), *arguments]) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    # three layers with super tokens, beside what they would do without; two that have none
    assert page.count("<img") == 1 + 3 * 3 + 2
    assert page.count("plain attention") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "0.5", "2"], "`point` is (0.5, 2.0)"),
        (["--label", "cat"], "`label` is 'cat'"),
        (["--reliance-stage", "7"], "`reliance_stage` is 7"),
        (["--output-dir", "{pictures}"], "which is in use"),
        (["--output-dir", "{pictures}/grey.png/x"], "which cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, message, model_dir, pictures, tmp_path, capsys):
    arguments = [argument.format(pictures=pictures) for argument in arguments]
    if "--output-dir" not in arguments:
        arguments += ["--output-dir", str(tmp_path / "out")]

    assert main(["visualize", str(model_dir), str(pictures), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_picture_at_all(model_dir, pictures, tmp_path, capsys):
    out = ["--output-dir", str(tmp_path / "out")]

    assert main(["visualize", str(model_dir), str(pictures / "*.jpeg"), *out]) == 2
    assert "where there is no picture" in capsys.readouterr().err
    assert main(["visualize", str(model_dir), *out]) == 2
    assert "`images` is empty" in capsys.readouterr().err
    # a file that is named is tried whatever its suffix
    assert main(["visualize", str(model_dir), str(pictures / "notes.txt"), *out]) == 3
    assert "none of 1 pictures could be read" in capsys.readouterr().err


def test_names_that_are_too_long_or_no_text(model_dir, pictures, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("x" * 240 + ".png", os.fsdecode(b"\xff.png")):
        shutil.copy(pictures / "grey.png", folder / name)

    assert main(["visualize", str(model_dir), str(folder), "--output-dir", str(tmp_path / "out")]) == 0
    written = sorted(os.fsencode(file.name) for file in (tmp_path / "out").iterdir())
    assert written == [b"index.html", b"x" * 50 + b".png", b"\xff.png"]
    assert "\ufffd.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_pictures_are_found_once(pictures):
    found = find_pictures([str(pictures), str(pictures / "**" / "*.png"), str(pictures / "grey.png")])

    assert [file.removeprefix(f"{pictures}/") for file in found] == ["<b>&.png", "deep/grey.png", "grey.png"]


def test_optional_package_is_asked_for_where_it_is_used(model_dir, pictures, tmp_path, fresh_python):
    code = f"""
from svit_hf.cli import main
arguments = ["visualize", {str(model_dir)!r}, {str(pictures)!r}, "--output-dir", "out"]
assert main(arguments) == 2
assert main([*arguments, "--parts", "super_tokens"]) == 0
"""
    assert "3 sheets in out" in fresh_python("-W", "error", "-c", code, hidden=("captum", "matplotlib"))


def test_sheet_is_in_the_proportions_of_the_picture():
    model = SViTForImageClassification(tiny_config()).eval()
    recording = record(model, Image.new("RGB", (128, 64)), SViTImageProcessorPil(size={"height": 32, "width": 64}))

    assert draw_super_tokens(recording, 1, 1, edge=100).size == (100, 50)
    with pytest.raises(ValueError, match=r"stage 3, layer 1 has no super tokens"):
        draw_super_tokens(recording, 3, 1)
    rows = draw_rows(recording, edge=200)
    sheet = draw_sheet(rows, "a name that is much longer than any sheet could be wide " * 9)
    assert [len(row.panels) for row in rows] == [1, 6, 6]
    assert sheet.width == 2 * 28 + 6 * 200 + 5 * 14
    # a title on top; bars of five classes, which are higher than a drawing; two layers
    assert sheet.height == 74 + (44 + 5 * 36) + 2 * (44 + 100 + 26) + 28
