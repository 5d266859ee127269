# SPDX-License-Identifier: Apache-2.0
"""A picture of classified images: a grid with label and probability under each, the wrong ones marked."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont


class Prediction(NamedTuple):
    """Hold an image, what it shows, and what a model takes it for.

    Attributes:
        image: Any size and mode.
        truth: The right label.
        label: The predicted label.
        score: The probability that the model gives it, 0 to 1.
    """

    image: Image.Image
    truth: str
    label: str
    score: float

    @property
    def is_right(self) -> bool:
        """Whether the model is right."""
        return self.label == self.truth


# all in pixels
TILE = 96
GAP = 16
CAPTION_HEIGHT = 30
HEADER_HEIGHT = 84
FRAME = 4

PAPER, INK, FAINT = "#fafaf7", "#1d2329", "#6b747d"
RIGHT, WRONG = "#d5d9dc", "#c8321f"


def draw_contact_sheet(predictions: Sequence[Prediction], title: str, subtitle: str, columns: int = 10) -> Image.Image:
    """Draw predictions row by row, enlarged as smoothly as the model's image processor does it.

    Args:
        predictions: At least one.
        title: The line on top.
        subtitle: The smaller line below it.
        columns: Images per row.

    Returns:
        An RGB image.
    """
    rows = -(-len(predictions) // columns)
    width = GAP + columns * (TILE + GAP)
    height = HEADER_HEIGHT + rows * (TILE + CAPTION_HEIGHT + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 34), title, INK, ImageFont.load_default(24), anchor="ls")
    draw.text((GAP, 60), subtitle, FAINT, ImageFont.load_default(15), anchor="ls")
    for index, prediction in enumerate(predictions):
        row, column = divmod(index, columns)
        corner = (GAP + column * (TILE + GAP), HEADER_HEIGHT + row * (TILE + CAPTION_HEIGHT + GAP))
        _draw_tile(sheet, draw, corner, prediction)
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], prediction: Prediction) -> None:
    left, top = corner
    frame, width = (RIGHT, 1) if prediction.is_right else (WRONG, FRAME)
    sheet.paste(prediction.image.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC), corner)
    draw.rectangle((left - width, top - width, left + TILE + width - 1, top + TILE + width - 1), None, frame, width)
    baseline = top + TILE + CAPTION_HEIGHT - 8
    label = prediction.label if prediction.is_right else f"{prediction.label}, not {prediction.truth}"
    draw.text((left, baseline), label, INK if prediction.is_right else WRONG, ImageFont.load_default(18), anchor="ls")
    score = f"{100 * prediction.score:.0f} %"
    draw.text((left + TILE, baseline), score, FAINT, ImageFont.load_default(13), anchor="rs")
