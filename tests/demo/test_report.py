# SPDX-License-Identifier: Apache-2.0
import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from svit_hf.demo.report import (
    GAP,
    HEADER_HEIGHT,
    MADE_BY,
    REPORT,
    TILE,
    WRONG,
    Prediction,
    draw_contact_sheet,
    replace_own_output,
)
from svit_hf.errors import SViTError


GREY = Image.new("L", (8, 8), 128)


def draw(*predictions):
    return np.asarray(draw_contact_sheet(predictions))


def tile(sheet, row, column, caption_height=30):
    top, left = HEADER_HEIGHT + row * (TILE + caption_height + GAP), GAP + column * (TILE + GAP)
    return sheet[top : top + TILE, left : left + TILE]


def num_red(pixels):
    return int((pixels == ImageColor.getrgb(WRONG)).all(axis=-1).sum())


def test_images_are_enlarged_in_reading_order():
    shades = [20, 90, 160]
    predictions = [Prediction(Image.new("L", (8, 8), shade), "1", "1", 1.0) for shade in shades]
    sheet = draw(*predictions)
    tiles = [tile(sheet, 0, column) for column in range(3)]
    assert [int(pixels[TILE // 2, TILE // 2, 0]) for pixels in tiles] == shades
    # with a dark margin, so that ink at the edge of an image does not look cut off
    assert all(pixels[3:-3, [3, -4]].max() < 20 for pixels in tiles)


def test_wrong_ones_come_first():
    right, wrong = Prediction(GREY, "3", "3", 0.9), Prediction(GREY, "3", "8", 0.9)
    sheet = draw(*[right] * 50, wrong)
    # four rows of ten
    assert sheet.shape[0] == HEADER_HEIGHT + 4 * (TILE + 30 + GAP)
    assert num_red(sheet) > 0


def test_only_wrong_ones_are_marked():
    right, wrong = Prediction(GREY, "3", "3", 0.9), Prediction(GREY, "3", "8", 0.9)
    assert num_red(draw(right, right)) == 0
    marked = draw(right, wrong)
    assert num_red(marked[:, : GAP + TILE + GAP // 2]) > 4 * TILE
    assert num_red(marked[:, GAP + TILE + GAP // 2 :]) == 0


def test_caption_says_label_and_probability():
    captions = {draw(Prediction(GREY, "3", label, score)).tobytes() for label in "38" for score in (0.5, 0.9)}
    assert len(captions) == 4


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (10, 1), (11, 2)])
def test_sheet_has_room_for_all(number, rows):
    heights = [draw(*[Prediction(GREY, "1", "1", 1.0)] * count).shape[0] for count in (number, 1, 11)]
    assert heights[0] == heights[rows]


def write(output_dir, files):
    with replace_own_output(output_dir) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        (folder / REPORT).write_text(json.dumps({"made_by": MADE_BY, "files": list(content(folder))}))


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def written(folder):
    return {name: text for name, text in content(folder).items() if name != REPORT}


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "some" / "output"


def test_new_folder_is_made(output_dir):
    write(output_dir, {"a.txt": "a", "sub/b.txt": "b"})
    assert written(output_dir) == {"a.txt": "a", "sub/b.txt": "b"}
    assert sorted(path.name for path in output_dir.iterdir()) == ["a.txt", REPORT, "sub"]


def test_empty_folder_is_used(output_dir):
    output_dir.mkdir(parents=True)
    write(output_dir, {"a.txt": "a"})
    assert written(output_dir) == {"a.txt": "a"}


def test_own_output_is_replaced_whole(output_dir):
    write(output_dir, {"a.txt": "old", "sub/b.txt": "old"})
    write(output_dir, {"a.txt": "new"})
    assert written(output_dir) == {"a.txt": "new"}
    assert not (output_dir / "sub").exists()


def test_failure_leaves_the_earlier_output(output_dir):
    write(output_dir, {"a.txt": "old"})
    before = content(output_dir)
    # the second file's folder cannot be made
    with pytest.raises(FileNotFoundError):
        write(output_dir, {"a.txt": "new", "no/such/folder": "new"})
    assert content(output_dir) == before


@pytest.mark.parametrize("name", ["mine.txt", "sub/mine.txt"])
def test_foreign_file_is_never_removed(output_dir, name):
    write(output_dir, {"a.txt": "old", "sub/b.txt": "old"})
    (output_dir / name).write_text("mine")
    before = content(output_dir)
    with pytest.raises(SViTError, match=name):
        write(output_dir, {"a.txt": "new"})
    assert content(output_dir) == before


def test_file_that_appears_meanwhile_is_not_removed(output_dir):
    write(output_dir, {"a.txt": "old"})
    # an absolute path leads out of the folder that is being written
    with pytest.raises(SViTError, match=r"mine\.txt"):
        write(output_dir, {"a.txt": "new", output_dir / "mine.txt": "mine"})
    assert written(output_dir) == {"a.txt": "old", "mine.txt": "mine"}


@pytest.mark.parametrize(
    "report",
    [None, "no json", "[]", '{"files": ["a.txt"]}', '{"made_by": "another", "files": ["a.txt"]}'],
    ids=["none", "no-json", "no-object", "unsigned", "another-program"],
)
def test_folder_of_someone_else_is_refused(output_dir, report):
    output_dir.mkdir(parents=True)
    (output_dir / "a.txt").write_text("mine")
    if report is not None:
        (output_dir / REPORT).write_text(report)
    with pytest.raises(SViTError, match=r"holds 'a\.txt'"):
        write(output_dir, {"a.txt": "new"})
    assert (output_dir / "a.txt").read_text() == "mine"


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SViTError, match="is no folder"):
        write(tmp_path / "file", {})
    with pytest.raises(SViTError, match="cannot be written"):
        write(tmp_path / "file" / "below", {})


def test_full_disk_leaves_the_earlier_output_and_says_so(output_dir, monkeypatch):
    write(output_dir, {"a.txt": "old"})
    before = content(output_dir)

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(SViTError, match="the disk is full"):
        write(output_dir, {"a.txt": "new"})
    assert content(output_dir) == before
    assert sorted(path.name for path in output_dir.iterdir()) == ["a.txt", REPORT]
