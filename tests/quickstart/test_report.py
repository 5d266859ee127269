# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from svit_hf.errors import SViTError
from svit_hf.quickstart.report import MADE_BY, NUM_SHOWN, REPORT, Prediction, replace_own_output, rows_of_predictions


GREY = Image.new("L", (8, 8), 128)


def test_wrong_ones_are_shown_first_with_label_and_probability():
    right, wrong = Prediction(GREY, "3", "3", 0.9), Prediction(GREY, "3", "8", 0.7)
    rows = rows_of_predictions([*[right] * 50, wrong])
    assert [row.title for row in rows] == ["Wrong", *["Right"] * 5]
    captions = [panel.caption for row in rows for panel in row.panels]
    assert captions == ["8, not 3: 70%", *["3: 90%"] * (NUM_SHOWN - 1)]


def test_digits_are_enlarged_with_a_dark_margin():
    ((row,),) = (rows_of_predictions([Prediction(Image.new("L", (8, 8), 160), "1", "1", 1.0)]),)
    pixels = np.asarray(row.panels[0].drawing)
    assert pixels[64, 64, 0] == 160
    # ink at the edge of a digit would look cut off without it
    assert pixels[3:-3, [3, -4]].max() < 20


def write(output_dir, files):
    with replace_own_output(output_dir) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        (folder / REPORT).write_text(json.dumps({"made_by": MADE_BY}))


def written(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "some" / "output"


def test_own_output_is_replaced_and_nothing_else(output_dir):
    write(output_dir, {"a.txt": "old", "sub/b.txt": "old"})
    (output_dir / "sub" / "mine.txt").write_text("mine")
    write(output_dir, {"a.txt": "new", "sub/b.txt": "new"})
    assert written(output_dir) == {"a.txt": "new", "sub/b.txt": "new", "sub/mine.txt": "mine"}


@pytest.mark.parametrize(
    "report",
    [None, "no json", "[]", "{}", '{"made_by": "another"}'],
    ids=["none", "no-json", "no-object", "unsigned", "another-program"],
)
def test_folder_of_someone_else_is_refused(output_dir, report):
    output_dir.mkdir(parents=True)
    (output_dir / "a.txt").write_text("mine")
    if report is not None:
        (output_dir / REPORT).write_text(report)
    with pytest.raises(SViTError, match="which is in use"):
        write(output_dir, {"a.txt": "new"})
    assert (output_dir / "a.txt").read_text() == "mine"
