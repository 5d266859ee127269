# SPDX-License-Identifier: Apache-2.0
"""The page: a picture on the left, what each model does with it beside. The only file that imports gradio."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from svit_hf.demo.pictures import LIMITS, describe_upload
from svit_hf.demo.viewer import (
    HINT,
    Cell,
    Choice,
    Response,
    Viewer,
    describe_layer,
    point_clicked,
    respond,
    with_cell,
)
from svit_hf.errors import SViTError


CACHE_VARIABLE = "GRADIO_TEMP_DIR"
# visitors who wait; whoever comes then is told to come back
MOST_WAITING = 24
# events that are worked on at the same time; a model works on one
CONCURRENCY = 2
# seconds after which files of visitors are removed, and how often that is looked after
KEEP_FILES, LOOK_FOR_OLD_FILES = 1800, 300
MOST_SESSIONS = 200
# no visible trace of what goes on within a moment, and no entry in gradio's list of an interface for programs
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# while a slider is drawn, only the last value counts
LIVE: dict[str, Any] = QUIETLY | {"trigger_mode": "always_last"}


@dataclass(frozen=True)
class Panel:
    """Components of the page that show one model."""

    viewer: Viewer
    answer: gr.HTML
    stage: gr.Slider
    layer: gr.Slider
    cell: gr.Slider
    reset: gr.Button
    cells: gr.State
    layer_text: gr.HTML
    drawings: tuple[gr.Image, ...]

    @property
    def shown(self) -> list[Any]:
        """What `_show` gives values to, in its order."""
        return [self.answer, self.layer_text, *self.drawings]


def build_page(viewers: Sequence[Viewer], examples: Sequence[Path] = ()) -> gr.Blocks:
    """Lay out the page and connect it."""
    lifetime = (LOOK_FOR_OLD_FILES, KEEP_FILES)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=lifetime, fill_width=True) as page:
        # of the file: never sent by a browser, which could name any
        picture = gr.State()
        point = gr.State(viewers[0].first_choice.point)
        gr.HTML(f"<h1>{TITLE}</h1><p>{ABOUT}</p>", elem_id="about")
        with gr.Row(elem_classes="pair" if len(viewers) > 1 else None):
            with gr.Column(scale=2, min_width=260):
                # a component for files, since that for pictures would decode them itself, within no limits
                upload = gr.File(type="filepath", file_count="single", label="A picture", height=132, elem_id="upload")
                message = gr.HTML(elem_id="message")
                preview = gr.Image(
                    label="The whole picture",
                    interactive=False,
                    format="jpeg",
                    buttons=[],
                    visible=False,
                    elem_id="preview",
                )
                gallery = _lay_out_examples(examples)
            panels = [_lay_out(viewer, number) for number, viewer in enumerate(viewers)]
        upload.upload(lambda file: file, upload, picture, **QUIETLY)
        upload.clear(lambda: None, None, picture, **QUIETLY)
        if gallery is not None:
            gallery.select(_taking(examples), None, [picture, upload], **QUIETLY)
        picture.change(_describe, picture, [message, preview], **QUIETLY)
        for panel in panels:
            _connect(panel, picture, point)
    return page


def serve(
    viewers: Sequence[Viewer],
    examples: Sequence[Path] = (),
    *,
    host: str | None = None,
    port: int | None = None,
    opens_browser: bool = False,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        viewers: One model, or two to compare.
        examples: Pictures to try.
        host: Address to listen at; that of `GRADIO_SERVER_NAME`, or this machine alone, if `None`.
        port: Port to listen at; that of `GRADIO_SERVER_PORT`, or the first free one from 7860 on, if `None`.
        opens_browser: Whether to open the page in a browser.
        announce: Called with the page's address when it is there.

    Raises:
        SViTError: If address or port cannot be used.
    """
    with _own_cache():
        page = build_page(viewers, examples)
        page.queue(max_size=MOST_WAITING, default_concurrency_limit=CONCURRENCY, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                inbrowser=opens_browser,
                quiet=True,
                share=False,
                ssr_mode=False,
                prevent_thread_lock=True,
                allowed_paths=[],
                max_file_size=LIMITS.max_bytes,
                state_session_capacity=MOST_SESSIONS,
                enable_monitoring=False,
                footer_links=[],
                theme=_theme(),
                css=STYLE,
            )
        # a port that is taken, none that is free, an address of another machine
        except OSError as error:
            raise SViTError(f"the page cannot be served at `host` {host}, `port` {port}: {error}") from error
        if announce is not None:
            announce(address)
        page.block_thread()


@contextmanager
def _own_cache() -> Iterator[None]:
    """Keep files of visitors in a folder of this process, which is gone afterwards.

    Gradio hands out whatever is in that folder; by default, all its programs on a machine share one.
    """
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="svit-demo-", ignore_cleanup_errors=True) as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE_VARIABLE]
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


def _theme() -> gr.themes.Base:
    # fonts of the system: gradio's own come from another server
    theme = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # gradio's own are too pale to be read with ease
    return theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400")


def _lay_out_examples(examples: Sequence[Path]) -> gr.Gallery | None:
    if not examples:
        return None
    return gr.Gallery(
        [str(file) for file in examples],
        label="Or one of these",
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def _taking(examples: Sequence[Path]) -> Callable[..., Any]:
    def take(event: gr.SelectData) -> tuple[str, None]:
        # the place where files are dropped is emptied
        return str(examples[int(event.index)]), None

    return take


def _describe(file: str | None) -> list[Any]:
    text, preview = describe_upload(file)
    return [text, gr.update(value=preview, visible=preview is not None)]


def _lay_out(viewer: Viewer, number: int) -> Panel:
    choice = viewer.first_choice
    with gr.Column(scale=7, min_width=340, elem_classes="model"):
        gr.HTML(f"<h2>{escape(viewer.name)}</h2>")
        with gr.Row():
            with gr.Column(min_width=220):
                answer = gr.HTML(HINT, elem_id=f"answer-{number}")
            with gr.Column(min_width=220):
                stage = gr.Slider(
                    1,
                    max(len(viewer.depths), 2),
                    choice.stage,
                    step=1,
                    label="Stage",
                    visible=len(viewer.depths) > 1,
                    elem_id=f"stage-{number}",
                )
                layer = gr.Slider(step=1, label="Layer", elem_id=f"layer-{number}", **_layers(viewer, choice))
                cell = gr.Slider(step=1, label="Cell, in tokens", elem_id=f"cell-{number}", **_cells(viewer, choice))
                reset = gr.Button("Cells as trained", size="sm", elem_id=f"reset-{number}")
        layer_text = gr.HTML(describe_layer(viewer, choice), elem_id=f"layer-text-{number}", elem_classes="layer-text")
        with gr.Row(elem_classes="drawings"):
            drawings = tuple(
                gr.Image(
                    label=caption,
                    interactive=False,
                    format="jpeg",
                    # every corner can be clicked
                    buttons=[],
                    min_width=150,
                    elem_id=f"drawing-{number}-{place}",
                    elem_classes="drawing",
                )
                for place, caption in enumerate(viewer.captions)
            )
    return Panel(viewer, answer, stage, layer, cell, reset, gr.State(choice.cells), layer_text, drawings)


def _connect(panel: Panel, picture: gr.State, point: gr.State) -> None:
    viewer = panel.viewer

    def show(file: str | None, stage: int, layer: int, cells: tuple[Cell, ...], at: tuple[float, float]) -> list[Any]:
        return _values(respond(viewer, file, Choice(int(stage), int(layer), cells, at)))

    def change_stage(file: str | None, stage: int, cells: tuple[Cell, ...], at: tuple[float, float]) -> list[Any]:
        choice = viewer.allowed(Choice(int(stage), max(viewer.depths), cells, at))
        layers, cell = gr.update(**_layers(viewer, choice)), gr.update(**_cells(viewer, choice))
        return [layers, cell, *_values(respond(viewer, file, choice))]

    def change_cell(
        file: str | None, stage: int, layer: int, cell: int, cells: tuple[Cell, ...], at: tuple[float, float]
    ) -> list[Any]:
        choice = viewer.allowed(with_cell(Choice(int(stage), int(layer), cells, at), int(cell)))
        return [choice.cells, *_values(respond(viewer, file, choice))]

    def reset_cells(file: str | None, stage: int, layer: int, at: tuple[float, float]) -> list[Any]:
        choice = viewer.allowed(Choice(int(stage), int(layer), viewer.cells, at))
        return [choice.cells, gr.update(**_cells(viewer, choice)), *_values(respond(viewer, file, choice))]

    gr.on(
        [picture.change, panel.layer.input, point.change],
        show,
        [picture, panel.stage, panel.layer, panel.cells, point],
        panel.shown,
        **LIVE,
    )
    panel.stage.input(
        change_stage, [picture, panel.stage, panel.cells, point], [panel.layer, panel.cell, *panel.shown], **LIVE
    )
    panel.cell.input(
        change_cell,
        [picture, panel.stage, panel.layer, panel.cell, panel.cells, point],
        [panel.cells, *panel.shown],
        **LIVE,
    )
    panel.reset.click(
        reset_cells, [picture, panel.stage, panel.layer, point], [panel.cells, panel.cell, *panel.shown], **QUIETLY
    )
    for place, drawing in enumerate(panel.drawings):
        drawing.select(_clicking(viewer, place), None, point, **QUIETLY)


def _clicking(viewer: Viewer, drawing: int) -> Callable[..., Any]:
    def click(event: gr.SelectData) -> tuple[float, float]:
        return point_clicked(viewer, drawing, event.index)

    return click


def _layers(viewer: Viewer, choice: Choice) -> dict[str, Any]:
    """Return the properties of the slider of layers."""
    depth = viewer.depths[choice.stage - 1]
    # a slider needs two ends
    return {"minimum": 1, "maximum": max(depth, 2), "value": choice.layer, "visible": depth > 1}


def _cells(viewer: Viewer, choice: Choice) -> dict[str, Any]:
    """Return the properties of the slider of cells."""
    low, high = viewer.cell_range(choice.stage)
    value = max(choice.cells[choice.stage - 1])
    return {"minimum": low, "maximum": max(high, low + 1), "value": value, "visible": high > low}


def _values(response: Response) -> list[Any]:
    """Return what a panel shows, in the order of `Panel.shown`."""
    drawings = [gr.update(value=drawing, visible=drawing is not None) for drawing in response.drawings]
    return [response.answer, response.layer_text, *drawings]


TITLE = "Super tokens"
ABOUT = (
    "An SViT gathers the tokens of a picture in a few super tokens, which follow what is in it. Choose a picture, and "
    "click a point of any drawing to see where it looks. A cell is how many tokens, in each direction, share a super "
    "token at first. It is no weight: change it, and the answer and its time change with it."
)

# beside the colours of gradio, which follow the light or dark of the visitor
STYLE = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1560px !important; margin: 0 auto !important; }
#about h1 { font-size: 1.75rem; font-weight: 650; letter-spacing: -.01em; margin: 0; color: var(--body-text-color); }
#about p { color: var(--body-text-color-subdued); max-width: 54rem; margin: .25rem 0 .25rem; line-height: 1.5; }
#preview { flex-shrink: 0; }
#preview .image-container, #preview .image-frame, #preview button { height: auto; width: 100%; }
#preview img { width: 100%; height: auto; max-height: 260px; object-fit: contain; }
#examples { flex-shrink: 0; height: auto !important; }
#examples .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important;
  padding-top: 1.9rem; }
#examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(60px, 1fr)) !important; gap: .4rem; }
.model h2 { font-size: 1.2rem; font-weight: 650; margin: 0; overflow-wrap: anywhere; color: var(--body-text-color); }
.answer { list-style: none; margin: 0; padding: 0; font-size: .95rem; }
.answer li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0 0 .55rem; }
.answer .label { overflow-wrap: anywhere; }
.answer li:first-child .label { font-weight: 650; }
.answer .share { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.answer .bar { flex-basis: 100%; height: 7px; border-radius: 4px; background: var(--border-color-primary); }
.answer .bar span { display: block; height: 100%; border-radius: 4px; background: #c2571a; }
.cost, .hint, .layer-text { color: var(--body-text-color-subdued); font-size: .95rem; margin: .25rem 0; }
.cost b { color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.drawings { display: grid !important; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .75rem; }
.drawing { min-width: 0 !important; display: flex; flex-direction: column-reverse; border: 0 !important; }
.drawing:first-child { grid-column: span 2; grid-row: span 2; }
.drawing img { cursor: crosshair; width: 100% !important; height: auto !important; max-height: none !important;
  object-fit: scale-down !important; border-radius: 6px; }
.drawing label[data-testid="block-label"] { position: static; border: 0; box-shadow: none; background: none;
  padding: .35rem .1rem 0; color: var(--body-text-color-subdued); font-size: .9rem; }
.drawing label[data-testid="block-label"] span { display: none; }
.drawing .image-container, .drawing .image-frame, .drawing .image-frame > *, .drawing button:has(img) {
  height: auto; width: 100%; }
.pair .drawings { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pair .drawing:first-child { grid-row: auto; }
@media (max-width: 900px) {
  .drawings { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .drawing:first-child { grid-row: auto; }
}
.note, .error { font-size: .95rem; padding: .6rem .8rem; border-radius: 8px; margin: 0; }
.note { background: var(--background-fill-secondary); color: var(--body-text-color); }
.error { background: #fdecea; color: #8c1d12; border: 1px solid #f2b8b0; }
"""
