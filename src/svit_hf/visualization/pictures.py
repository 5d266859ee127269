# SPDX-License-Identifier: Apache-2.0
"""Many pictures at once: a sheet of each, and one page of them all."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from PIL import Image
from transformers.modeling_utils import PreTrainedModel

from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.folders import picture_files
from svit_hf.errors import SViTError
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.files import whole_file, write_text
from svit_hf.progress import Progress
from svit_hf.visualization.options import DrawingOptions
from svit_hf.visualization.recording import record
from svit_hf.visualization.sheet import Panel, PanelRow, draw_rows, draw_sheet


PAGE = "index.html"
# drawings of that many pictures are as much as a browser shows without effort
MOST_ON_PAGE = 100
# characters; a file system allows some 255 bytes, of which a temporary name takes a few
LONGEST_NAME = 50


@dataclass(frozen=True)
class Visualized:
    """What came of a number of pictures."""

    sheets: tuple[Path, ...]
    page: Path | None
    broken: tuple[tuple[str, str], ...]


def visualize_pictures(
    model: PreTrainedModel,
    preprocessing: Preprocessing,
    files: Sequence[str],
    output_dir: Path,
    options: DrawingOptions,
    draw: Callable[[Image.Image], Image.Image] | None = None,
) -> Visualized:
    """Draw what a model does with pictures, with one forward pass for each.

    Each gets a sheet, `NAME.png`, and the first 100 are in `index.html`, too. One that cannot be read is passed over,
    and named in the result.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    sheets: list[Path] = []
    sections: list[str] = []
    broken: list[tuple[str, str]] = []
    # the page's name is taken, so that on a disk without capitals no picture's sheet replaces it
    taken = {Path(PAGE).stem}
    with Progress(len(files), "pictures") as progress:
        for file in files:
            progress.advance()
            try:
                picture = decode_image(file)
            except DecodingError as error:
                broken.append((file, str(error)))
                continue
            pixel_values = preprocessing(picture)
            recording = record(
                model,
                pixel_values,
                preprocessing.processor,
                reliance="classifier" in options.parts,
                label=options.label,
                reliance_stage=options.reliance_stage,
            )
            rows = draw_rows(recording, options.point, options.layers, options.parts, options.edge)
            if draw is not None:
                seen = rows[0].panels[0].drawing
                found = Panel("what the model finds", draw(picture).resize(seen.size, Image.Resampling.BICUBIC))
                rows[0] = replace(rows[0], panels=(*rows[0].panels, found))
            # a name in another encoding than that of the system has characters that cannot be written anywhere else
            name = os.fsencode(file).decode(errors="replace")
            sheet = output_dir / f"{_free_name(Path(file).stem[:LONGEST_NAME], taken)}.png"
            with whole_file(sheet) as temporary:
                draw_sheet(rows, Path(name).name).save(temporary, "PNG")
            sheets.append(sheet)
            if len(sections) < MOST_ON_PAGE:
                sections.append(section_of(name, rows))
    page = output_dir / PAGE if sections else None
    if page is not None:
        write_text(page, page_of(sections, "Super tokens", _about(len(sections), len(sheets), options.point)))
    return Visualized(tuple(sheets), page, tuple(broken))


def find_pictures(sources: Sequence[str]) -> list[str]:
    """Return picture files, each once.

    Args:
        sources: Picture files, whatever their suffix; folders that have pictures somewhere in them; globs.

    Raises:
        SViTError: If there are none, or nothing is at one of them.
    """
    files: list[str] = []
    for source in sources:
        found = [source] if Path(source).is_file() else picture_files(source)
        if not found:
            raise SViTError(f"`images` has {source!r}, where there is no picture; name files, folders or globs.")
        files += found
    if not files:
        raise SViTError("`images` is empty; name files, folders or globs.")
    return list(dict.fromkeys(files))


def _free_name(stem: str, taken: set[str]) -> str:
    """Return a name that no other picture has, not even in other capitals."""
    name, number = stem, 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name.lower())
    return name


def _about(num_shown: int, num_sheets: int, point: tuple[float, float]) -> str:
    missing = f" These are the first {num_shown} of {num_sheets} pictures." if num_shown < num_sheets else ""
    return (
        f"What the model saw and did. The ring is the point ({point[0]:g}, {point[1]:g}), in shares of width and "
        "height. The lighter a place, the more of it belongs to the point's super token, the more the point takes "
        "from it, or the more it speaks for the class. 'If' is what the layer's queries and keys would do without "
        f"super tokens, though they were trained with them.{missing}"
    )


STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1d2329; --faint: #626b74; --line: #e3e1db; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1d2125; --ink: #e8eaec; --faint: #9aa4ad; --line: #30363c; }
}
body { margin: 0 auto; max-width: 1280px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
.about, figcaption { color: var(--faint); }
.about { margin: .3rem 0 2rem; max-width: 46rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem;
  margin: 1.5rem 0; }
h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.25rem 0 .5rem; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .75rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
.scores { list-style: none; margin: 0; padding: 0; grid-column: span 2; font-size: .9rem; }
.scores li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-bottom: .5rem; }
.scores li > span:first-child { overflow-wrap: anywhere; }
.bar { flex-basis: 100%; background: var(--line); border-radius: 3px; }
.bar span { display: block; height: 6px; border-radius: 3px; background: #c2571a; }
figcaption { font-size: .85rem; margin-top: .25rem; }
"""


def section_of(name: str, rows: list[PanelRow]) -> str:
    """Return the part of a page that is about one picture."""
    body = "\n".join(_row(name, row) for row in rows)
    return f"<section>\n<h2>{escape(name)}</h2>\n{body}\n</section>"


def page_of(sections: list[str], title: str, about: str) -> str:
    """Return a page of sections, see `section_of`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="about">{escape(about)}</p>
{chr(10).join(sections)}
</body>
</html>
"""


def _row(name: str, row: PanelRow) -> str:
    figures = "\n".join(_figure(name, panel) for panel in row.panels)
    if row.scores:
        figures += f'\n<ul class="scores">{"".join(_score(*score) for score in row.scores)}</ul>'
    return f'<h3>{escape(row.title)}</h3>\n<div class="row">\n{figures}\n</div>'


def _score(label: str, score: float) -> str:
    bar = f'<span class="bar"><span style="width: {score:.1%}"></span></span>'
    return f"<li><span>{escape(label)}</span><span>{score:.1%}</span>{bar}</li>"


def _figure(name: str, panel: Panel) -> str:
    width, height = panel.drawing.size
    text = escape(f"{name}: {panel.caption}", quote=True)
    image = f'<img src="{_data_address(panel.drawing)}" width="{width}" height="{height}" alt="{text}" loading="lazy">'
    return f"<figure>{image}<figcaption>{escape(panel.caption)}</figcaption></figure>"


def _data_address(drawing: Image.Image) -> str:
    data = io.BytesIO()
    drawing.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
