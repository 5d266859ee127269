# SPDX-License-Identifier: Apache-2.0
"""A model that can be asked about pictures again and again, with its cells set otherwise than it was trained.

What the page shows of its answers is made here, too.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from transformers.modeling_utils import PreTrainedModel

from svit_hf.demo.pictures import read_upload
from svit_hf.errors import DataError, SViTError
from svit_hf.evaluation.checkpoints import find_model, load_classifier, load_image_processor
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.model.cells_svit import count_cells, token_grids
from svit_hf.tasks.models import backbone_of
from svit_hf.tasks.saved_models import TaskModel, dense_head, open_task_model
from svit_hf.visualization import (
    Recording,
    draw_mean_colours,
    draw_super_token_at,
    draw_super_tokens,
    draw_view,
    draw_where_a_pixel_looks,
    record,
)


Cell = tuple[int, int]

# what is drawn, and the longer edge in pixels: the page shows no drawing larger, since gradio takes a click for one on
# a drawing in its own size or smaller
DRAWINGS = {
    "the picture as the model sees it": 640,
    "super tokens": 320,
    "in their mean colours": 320,
    "the point's super token": 320,
    "where the point looks": 320,
}
NUM_CLASSES_SHOWN = 5
HINT = '<p class="hint">Choose a picture, and the answer comes here.</p>'
# what attends to each other costs its square: more super tokens than the model has itself are not offered beyond this
MOST_SUPER_TOKENS = 1024
LARGEST_CELL = 16
# each holds what the layers did with a picture: some 30 MB for SViT-S at 224 pixels
LOOKS_KEPT = 4


@dataclass(frozen=True)
class Choice:
    """What a visitor has chosen to see.

    Attributes:
        stage: From 1.
        layer: Of the stage, from 1.
        cells: Height and width of a cell in tokens, for every stage.
        point: `(x, y)` of what looks, as shares of width and height.
    """

    stage: int
    layer: int
    cells: tuple[Cell, ...]
    point: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True)
class Look:
    """What a model did with a picture.

    Attributes:
        recording: Its layers and probabilities.
        milliseconds: Duration of a forward pass without any recording; with a head, of all that it takes to draw what
            it finds.
        found: What a head finds, drawn on the picture; `None` for a classifier.
    """

    recording: Recording
    milliseconds: float
    found: Image.Image | None = None


@dataclass(eq=False)
class Viewer:
    """Model of the demo; any number of threads may ask it.

    Args:
        name: What to call it.
        model: A classifier, in eval mode, or the SViT inside of `dense`.
        preprocessing: What makes pixel values of a picture for it.
        dense: Model for segmentation or detection, and its task.
    """

    name: str
    model: PreTrainedModel
    preprocessing: Preprocessing
    dense: TaskModel | None = None
    _lock: Lock = field(default_factory=Lock)
    _looks: "OrderedDict[tuple[str, tuple[Cell, ...]], Look]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if getattr(self.model.config, "model_type", None) != "svit":
            raise SViTError(f"{self.name!r} is of the kind {self.model.config.model_type!r}; the demo shows SViT.")

    @property
    def captions(self) -> tuple[str, ...]:
        """What each of `DRAWINGS` shows."""
        first, *others = DRAWINGS
        return (first if self.dense is None else "what the model finds", *others)

    @property
    def num_parameters(self) -> int:
        """Of the whole model, with its head."""
        return (self.model if self.dense is None else self.dense.model).num_parameters()

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many layers each stage has."""
        return tuple(self.model.config.depths)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The model's own cells, one for each stage."""
        return tuple(self.model.config.cell_sizes)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """`(H, W)` of the tokens of each stage."""
        return tuple(token_grids(self.preprocessing.shape[1:], len(self.depths)))

    @property
    def first_choice(self) -> Choice:
        """The last layer of the first stage that has super tokens, as the model was trained."""
        stage = next((stage for stage, cell in enumerate(self.cells, 1) if cell != (1, 1)), 1)
        return Choice(stage, self.depths[stage - 1], self.cells)

    def cell_range(self, stage: int) -> tuple[int, int]:
        """Return the smallest and the largest cell that is offered for a stage, from 1."""
        grid, own = self.grids[stage - 1], self.cells[stage - 1]
        most = max(MOST_SUPER_TOKENS, _product(count_cells(grid, own)))
        high = max(min(LARGEST_CELL, *grid), *own)
        low = next(cell for cell in range(1, max(*grid, 2)) if _product(count_cells(grid, (cell, cell))) <= most)
        return min(low, *own), max(high, low)

    def allowed(self, choice: Choice) -> Choice:
        """Return the choice with everything moved to where the model has something, whatever was sent."""
        stage = min(max(choice.stage, 1), len(self.depths))
        layer = min(max(choice.layer, 1), self.depths[stage - 1])
        cells = list(self.cells)
        for number, cell in enumerate(choice.cells[: len(cells)]):
            low, high = self.cell_range(number + 1)
            if cell != cells[number]:
                cells[number] = (min(max(cell[0], low), high), min(max(cell[1], low), high))
        x, y = choice.point
        return Choice(stage, layer, tuple(cells), (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)))

    def look(self, key: str, picture: Image.Image, cells: tuple[Cell, ...]) -> Look:
        """Run the model on a picture, or remember what it did.

        Args:
            key: Names the picture; the same pictures have the same.
            picture: In RGB.
            cells: One for each stage.
        """
        with self._lock:
            if (key, cells) in self._looks:
                self._looks.move_to_end((key, cells))
                return self._looks[key, cells]
            pixel_values = self.preprocessing(picture)
            with self._with_cells(cells):
                recording = record(self.model, pixel_values, self.preprocessing.processor)
                # after the recording, which has warmed up what is computed first
                if self.dense is None:
                    look = Look(recording, self._time(pixel_values))
                else:
                    look = _look_with_head(self.dense, picture, recording)
            self._looks[key, cells] = look
            if len(self._looks) > LOOKS_KEPT:
                self._looks.popitem(last=False)
            return look

    def _time(self, pixel_values: torch.Tensor) -> float:
        batch = pixel_values.unsqueeze(0).to(self.model.device)
        with torch.no_grad():
            started = time.perf_counter()
            # a copy on the CPU is there when the device is done
            self.model(batch).logits.cpu()
            return (time.perf_counter() - started) * 1000

    @contextmanager
    def _with_cells(self, cells: tuple[Cell, ...]) -> Iterator[None]:
        """Set the cells of all layers for a while: they are no weights."""
        model: Any = self.model
        layers = [
            (layer.attention, cell)
            for stage, cell in zip(model.svit.stages, cells, strict=True)
            for layer in stage.layers
        ]
        before = [(attention.cell_size, attention.num_iterations) for attention, _ in layers]
        try:
            for attention, cell in layers:
                # a stage without super tokens may have no iterations
                attention.cell_size, attention.num_iterations = cell, max(1, attention.num_iterations)
            yield
        finally:
            for (attention, _), (cell, iterations) in zip(layers, before, strict=True):
                attention.cell_size, attention.num_iterations = cell, iterations


def open_viewer(model: str) -> Viewer:
    """Load a model for the demo."""
    location = find_model(model)
    device = torch.accelerator.current_accelerator() or "cpu"
    dense = open_task_model(location, device) if dense_head(location) is not None else None
    loaded = load_classifier(location, device) if dense is None else backbone_of(dense.model)
    path = Path(model)
    # of a run and its model, the run's name tells more
    name = path.resolve().parent.name if path.name == "model" else path.name
    return Viewer(name or model, loaded, Preprocessing(load_image_processor(location)), dense)


def _look_with_head(dense: TaskModel, picture: Image.Image, recording: Recording) -> Look:
    """Draw what a head finds, in the proportions of the recording's view."""
    started = time.perf_counter()
    found = dense.draw(picture)
    milliseconds = (time.perf_counter() - started) * 1000
    return Look(recording, milliseconds, found.resize(draw_view(recording, edge=max(DRAWINGS.values())).size))


def with_cell(choice: Choice, size: int) -> Choice:
    """Return the choice with square cells of a size in its stage."""
    number = choice.stage - 1
    return replace(choice, cells=(*choice.cells[:number], (size, size), *choice.cells[number + 1 :]))


def draw(look: Look, choice: Choice) -> list[Image.Image | None]:
    """Draw what `DRAWINGS` says, in that order; `None` for what a layer without super tokens does not have."""
    recording, point, place = look.recording, choice.point, (choice.stage, choice.layer)
    edges = list(DRAWINGS.values())
    seen = recording if look.found is None else replace(recording, view=look.found)
    drawings: list[Image.Image | None] = [draw_view(seen, point, edges[0]), None, None, None]
    if recording.layer(*place).association is not None:
        drawings[1] = draw_super_tokens(recording, *place, edge=edges[1])
        drawings[2] = draw_mean_colours(recording, *place, edge=edges[2])
        drawings[3] = draw_super_token_at(recording, point, *place, edge=edges[3])
    return [*drawings, draw_where_a_pixel_looks(recording, point, *place, edge=edges[4])]


def describe_layer(viewer: Viewer, choice: Choice) -> str:
    """Return what a layer does, in a line."""
    grid, cell = viewer.grids[choice.stage - 1], choice.cells[choice.stage - 1]
    tokens = f"{grid[0]} x {grid[1]} tokens"
    own = viewer.cells[choice.stage - 1]
    trained = "" if cell == own else f" Trained with a cell of {_size(own)}."
    if cell == (1, 1):
        return f"{tokens}, which all attend to each other.{trained}"
    rows, columns = count_cells(grid, cell)
    return f"{tokens} in cells of {_size(cell)}: {rows} x {columns} super tokens attend to each other.{trained}"


def answer_html(viewer: Viewer, look: Look) -> str:
    """Return the likeliest classes with their probabilities, and the time that they took, as HTML.

    A model for segmentation or detection has no such classes: those that it looks for are named instead.
    """
    device = viewer.model.device.type.upper()
    cost = (
        f'<p class="cost"><b>{look.milliseconds:.0f} ms</b> for this picture on {device}, '
        f"{viewer.num_parameters / 1e6:.2f} M parameters</p>"
    )
    if viewer.dense is not None:
        return f'<p class="hint">It looks for: {escape(", ".join(viewer.dense.task.labels))}.</p>{cost}'
    recording = look.recording
    assert recording.probabilities is not None
    found = recording.probabilities.topk(min(NUM_CLASSES_SHOWN, len(recording.labels)))
    bars = "".join(
        f'<li><span class="label">{escape(recording.labels[number])}</span><span class="share">{share:.1%}</span>'
        f'<span class="bar"><span style="width:{share:.1%}"></span></span></li>'
        for number, share in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    )
    return f'<ol class="answer">{bars}</ol>{cost}'


@dataclass(frozen=True)
class Response:
    """What a model's part of the page shows.

    Attributes:
        answer: The likeliest classes, as HTML; empty without a picture.
        layer_text: What the layer does.
        drawings: As in `DRAWINGS`; `None` for those that there are not.
    """

    answer: str
    layer_text: str
    drawings: list[Image.Image | None]


def respond(viewer: Viewer, file: str | None, choice: Choice) -> Response:
    """Answer about the picture in a file, which may be none or a bad one: then there is nothing to show."""
    choice = viewer.allowed(choice)
    layer_text = describe_layer(viewer, choice)
    nothing: list[Image.Image | None] = [None] * len(DRAWINGS)
    if file is None:
        return Response(HINT, layer_text, nothing)
    try:
        picture = read_upload(file).picture
    except DataError:
        return Response("", layer_text, nothing)
    look = viewer.look(file, picture, choice.cells)
    return Response(answer_html(viewer, look), layer_text, draw(look, choice))


def point_clicked(viewer: Viewer, drawing: int, pixel: tuple[int, int]) -> tuple[float, float]:
    """Return the place of a pixel `(x, y)` of a drawing, numbered as in `DRAWINGS`, as shares of width and height."""
    height, width = viewer.preprocessing.shape[1:]
    scale = list(DRAWINGS.values())[drawing] / max(height, width)
    return min(max(pixel[0] / (width * scale), 0.0), 1.0), min(max(pixel[1] / (height * scale), 0.0), 1.0)


def _size(cell: Cell) -> str:
    return str(cell[0]) if cell[0] == cell[1] else f"{cell[0]} x {cell[1]}"


def _product(pair: tuple[int, int]) -> int:
    return pair[0] * pair[1]
