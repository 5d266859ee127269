# SPDX-License-Identifier: Apache-2.0
"""What the page says and shows when a visitor does something."""

from dataclasses import dataclass
from html import escape

from PIL import Image

from svit_hf.browser_demo.uploads import read_upload
from svit_hf.browser_demo.viewer import DRAWINGS, Choice, Viewer, answer_html, describe_layer, draw
from svit_hf.errors import DataError


HINT = '<p class="hint">Choose a picture, and the answer comes here.</p>'
# longer edge, in pixels
PREVIEW_EDGE = 480


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


def describe_upload(file: str | None) -> tuple[str, Image.Image | None]:
    """Return what to say about an upload, as HTML, and the picture, small.

    What is said is why there is no picture, or what is not as a visitor might expect; empty if there is nothing.
    """
    if file is None:
        return "", None
    try:
        upload = read_upload(file)
    except DataError as error:
        return f'<p class="error" role="alert">{escape(str(error))}</p>', None
    preview = upload.picture.copy()
    preview.thumbnail((PREVIEW_EDGE, PREVIEW_EDGE))
    return f'<p class="note">{escape(upload.note)}</p>' if upload.note else "", preview


def point_clicked(viewer: Viewer, drawing: int, pixel: tuple[int, int]) -> tuple[float, float]:
    """Return the place of a pixel `(x, y)` of a drawing, numbered as in `DRAWINGS`, as shares of width and height."""
    height, width = viewer.preprocessing.shape[1:]
    scale = list(DRAWINGS.values())[drawing] / max(height, width)
    return min(max(pixel[0] / (width * scale), 0.0), 1.0), min(max(pixel[1] / (height * scale), 0.0), 1.0)
