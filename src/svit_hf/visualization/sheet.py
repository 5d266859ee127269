# SPDX-License-Identifier: Apache-2.0
"""A recorded picture as rows of drawings, and these rows as one picture."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from svit_hf.visualization.drawings import (
    draw_mean_colours,
    draw_reliance,
    draw_super_token_at,
    draw_super_tokens,
    draw_view,
    draw_where_a_pixel_looks,
)
from svit_hf.visualization.looking import Through
from svit_hf.visualization.options import EDGE, PARTS, Layers, Part
from svit_hf.visualization.recording import LayerRecording, Recording


LOOKS: dict[Through, str] = {
    "super_tokens": "where the point looks",
    "all_tokens": "if among all tokens",
    "window": "if within a window",
}
NUM_CLASSES_SHOWN = 5

# all in pixels
GAP, MARGIN, CAPTION, TITLE, HEADER, BAR_STEP = 14, 28, 26, 44, 74, 36
# of a column: captions fit
NARROWEST = 150
PAPER, INK, FAINT, TRACK, BAR = "#fbfaf7", "#1d2329", "#6b747d", "#e3e1db", "#c2571a"


@dataclass(frozen=True)
class Panel:
    """One drawing and what to call it."""

    caption: str
    drawing: Image.Image


@dataclass(frozen=True)
class PanelRow:
    """Drawings of one layer, or of the picture as a whole.

    Attributes:
        title: The line above them.
        panels: The drawings.
        scores: Of the picture as a whole, the likeliest classes with their probabilities.
    """

    title: str
    panels: tuple[Panel, ...]
    scores: tuple[tuple[str, float], ...] = ()


def draw_rows(
    recording: Recording,
    point: tuple[float, float] = (0.5, 0.5),
    layers: Layers = "last",
    parts: tuple[Part, ...] = PARTS,
    edge: int = EDGE,
) -> list[PanelRow]:
    """Draw a recorded picture, and then its layers.

    Args:
        recording: See `record`.
        point: `(x, y)` of what looks, as shares of width and height.
        layers: The last layer of every stage that has super tokens (of every stage, if none has), or all layers.
        parts: What to draw. The classifier is left out of a recording without `reliance`.
        edge: Longer edge of a drawing, in pixels.

    Returns:
        The picture and what the classifier relies on; then a row for each layer.
    """
    whole = [Panel("the picture", draw_view(recording, point, edge))]
    if "classifier" in parts and recording.reliance is not None:
        label = recording.labels[recording.target or 0]
        whole.append(Panel(f"what speaks for {label}", draw_reliance(recording, edge)))
    rows = [PanelRow("The picture as the model sees it", tuple(whole), tuple(_scores(recording)))]
    rows += [
        PanelRow(_title(layer), tuple(_panels(recording, layer, point, parts, edge)))
        for layer in _chosen(recording, layers)
    ]
    return [row for row in rows if row.panels]


def draw_sheet(rows: list[PanelRow], title: str) -> Image.Image:
    """Put rows of drawings on one sheet.

    Args:
        rows: See `draw_rows`; at least one.
        title: The line on top, such as the name of the picture's file.

    Returns:
        An RGB picture.
    """
    columns = max(len(row.panels) for row in rows)
    column_width = max(NARROWEST, *(panel.drawing.width for row in rows for panel in row.panels))
    heights = [
        TITLE + max(max(panel.drawing.height for panel in row.panels) + CAPTION, len(row.scores) * BAR_STEP)
        for row in rows
    ]
    width = 2 * MARGIN + columns * column_width + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, HEADER + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 50), _fitting(title, 26, width - 2 * MARGIN), INK, ImageFont.load_default(26), anchor="ls")
    top = HEADER
    for row, height in zip(rows, heights, strict=True):
        text = _fitting(row.title, 17, width - 2 * MARGIN)
        draw.text((MARGIN, top + TITLE - 14), text, INK, ImageFont.load_default(17), anchor="ls")
        for number, panel in enumerate(row.panels):
            left = MARGIN + number * (column_width + GAP)
            sheet.paste(panel.drawing, (left, top + TITLE))
            baseline = top + TITLE + panel.drawing.height + CAPTION - 8
            caption = _fitting(panel.caption, 15, column_width)
            draw.text((left, baseline), caption, FAINT, ImageFont.load_default(15), anchor="ls")
        left = MARGIN + len(row.panels) * (column_width + GAP)
        if row.scores and left + column_width < width:
            _draw_scores(draw, row.scores, (left + GAP, top + TITLE), column_width)
        top += height
    return sheet


def _draw_scores(
    draw: ImageDraw.ImageDraw, scores: tuple[tuple[str, float], ...], corner: tuple[int, int], width: int
) -> None:
    """Draw a bar for each class, with its name and probability above."""
    left, top = corner
    for number, (label, score) in enumerate(scores):
        baseline, share = top + number * BAR_STEP + 14, f"{score:.1%}"
        room = width - int(ImageFont.load_default(15).getlength(share)) - GAP
        draw.text((left, baseline), _fitting(label, 15, room), INK, ImageFont.load_default(15), anchor="ls")
        draw.text((left + width, baseline), share, FAINT, ImageFont.load_default(15), anchor="rs")
        draw.rectangle((left, baseline + 6, left + width, baseline + 12), TRACK)
        draw.rectangle((left, baseline + 6, left + round(width * score), baseline + 12), BAR)


def _panels(
    recording: Recording, layer: LayerRecording, point: tuple[float, float], parts: tuple[Part, ...], edge: int
) -> Iterator[Panel]:
    place = layer.stage, layer.layer
    has_super_tokens = layer.association is not None
    if "super_tokens" in parts and has_super_tokens:
        yield Panel("super tokens", draw_super_tokens(recording, *place, edge=edge))
        yield Panel("in their mean colours", draw_mean_colours(recording, *place, edge=edge))
        yield Panel("the point's super token", draw_super_token_at(recording, point, *place, edge=edge))
    if "attention" in parts:
        # without super tokens all tokens do attend, and there is nothing to compare with
        for through, caption in LOOKS.items():
            if has_super_tokens or through == "super_tokens":
                yield Panel(caption, draw_where_a_pixel_looks(recording, point, *place, through=through, edge=edge))


def _chosen(recording: Recording, layers: Layers) -> list[LayerRecording]:
    if layers == "all":
        return list(recording.layers)
    last = list({layer.stage: layer for layer in recording.layers}.values())
    return [layer for layer in last if layer.association is not None] or last


def _scores(recording: Recording) -> Iterator[tuple[str, float]]:
    if recording.probabilities is not None:
        found = recording.probabilities.topk(min(NUM_CLASSES_SHOWN, len(recording.labels)))
        for number, score in zip(found.indices.tolist(), found.values.tolist(), strict=True):
            yield recording.labels[number], score


def _title(layer: LayerRecording) -> str:
    tokens = f"{layer.grid[0]}x{layer.grid[1]} tokens"
    name = f"Stage {layer.stage}, layer {layer.layer}"
    if layer.association is None:
        return f"{name}: {tokens}, plain attention"
    rows, columns = layer.super_token_grid
    return f"{name}: {tokens}, {rows}x{columns} super tokens"


def _fitting(text: str, size: int, width: int) -> str:
    """Return a line cut to a width in pixels."""
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
