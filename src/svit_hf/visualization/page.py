# SPDX-License-Identifier: Apache-2.0
"""Recorded pictures as one HTML page that needs nothing else: pictures are inside, there is no script."""

import base64
import io
from html import escape

from PIL import Image

from svit_hf.visualization.sheet import Panel, PanelRow


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
