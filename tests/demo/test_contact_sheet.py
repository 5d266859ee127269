# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image, ImageColor

from svit_hf.demo.contact_sheet import GAP, HEADER_HEIGHT, TILE, WRONG, Prediction, draw_contact_sheet


GREY = Image.new("L", (8, 8), 128)


def draw(*predictions, columns=10):
    return np.asarray(draw_contact_sheet(predictions, "title", "subtitle", columns=columns))


def tile(sheet, row, column, caption_height=30):
    top, left = HEADER_HEIGHT + row * (TILE + caption_height + GAP), GAP + column * (TILE + GAP)
    return sheet[top : top + TILE, left : left + TILE]


def num_red(pixels):
    return int((pixels == ImageColor.getrgb(WRONG)).all(axis=-1).sum())


def test_images_are_enlarged_in_reading_order():
    shades = [20, 90, 160]
    predictions = [Prediction(Image.new("L", (8, 8), shade), "1", "1", 1.0) for shade in shades]
    sheet = draw(*predictions, columns=2)
    inside = [tile(sheet, *place)[2:-2, 2:-2] for place in ((0, 0), (0, 1), (1, 0))]
    assert [(int(pixels.min()), int(pixels.max())) for pixels in inside] == [(shade, shade) for shade in shades]


def test_only_wrong_ones_are_marked():
    right, wrong = Prediction(GREY, "3", "3", 0.9), Prediction(GREY, "3", "8", 0.9)
    assert num_red(draw(right, right)) == 0
    marked = draw(right, wrong)
    assert num_red(marked[:, : GAP + TILE]) == 0
    assert num_red(marked[:, GAP + TILE :]) > 4 * TILE


def test_caption_says_label_and_probability():
    captions = {draw(Prediction(GREY, "3", label, score)).tobytes() for label in "38" for score in (0.5, 0.9)}
    assert len(captions) == 4


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (10, 1), (11, 2)])
def test_sheet_has_room_for_all(number, rows):
    heights = [draw(*[Prediction(GREY, "1", "1", 1.0)] * count).shape[0] for count in (number, 1, 11)]
    assert heights[0] == heights[rows]
