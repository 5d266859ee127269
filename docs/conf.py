# SPDX-License-Identifier: Apache-2.0
"""The documentation site: `scripts/docs.sh` builds it, without a network and with warnings as errors."""

import json
import re
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


DOCS = Path(__file__).parent
LINK_TO_MARKDOWN = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+\.md)(?:#[^)\s]*)?\)")

project = "svit-hf"
author = "The svit-hf contributors"
copyright = f"2026, {author}"
version = release = installed_version("svit-hf")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
# in docstrings, single backticks are code as in Markdown
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
# `#heading` leads to a heading, as it does where the same files are read unbuilt
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
# the whole signature of a config with thirty fields is a wall
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style"), ("Shape", "notes_style")]

html_theme = "furo"
html_title = "svit-hf"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a8480f", "color-brand-content": "#a8480f"},
    "dark_css_variables": {"color-brand-primary": "#f0a35e", "color-brand-content": "#f0a35e"},
}


class NotebookParser(MystParser):
    """Notebooks as the Markdown and the code that is in their cells; they hold no outputs, which tests run for."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the cells, below a link to the file itself."""
        texts = []
        for cell in json.loads(inputstring)["cells"]:
            text = "".join(cell["source"])
            texts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        name = Path(document["source"]).name
        title, *others = texts
        link = f"{{download}}`Download the notebook <{name}>`, and open it in Jupyter or Colab."
        super().parse("\n\n".join([*title.split("\n\n", 1)[:1], link, *title.split("\n\n", 1)[1:], *others]), document)


def setup(app: Sphinx) -> None:
    """Read notebooks; let links to Markdown outside of this folder, which is no page of the site, lead to the file."""
    app.add_source_parser(NotebookParser)
    app.connect("source-read", _download_what_is_outside)


def _download_what_is_outside(app: Sphinx, page: str, source: list[str]) -> None:
    folder = app.env.doc2path(page).parent

    def download(link: re.Match[str]) -> str:
        is_page = (folder / link[2]).resolve().is_relative_to(DOCS)
        return link[0] if is_page else f"{{download}}`{link[1]} <{link[2]}>`"

    source[0] = LINK_TO_MARKDOWN.sub(download, source[0])
