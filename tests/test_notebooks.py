# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the documentation run from the first cell to the last, and hold no outputs of another run."""

from pathlib import Path

import pytest


NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
# the one that a newcomer opens; the others are a campaign
FIRST = "finetune_on_your_folder"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.newest
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem == FIRST else pytest.mark.campaign, id=path.stem) for path in NOTEBOOKS],
)
def test_notebook_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if cell.outputs or cell.execution_count] == []
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in code for output in cell.outputs]
    assert any(output.output_type == "stream" and output.name == "stdout" for output in shown)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4
    assert FIRST in [path.stem for path in NOTEBOOKS]
