# SPDX-License-Identifier: Apache-2.0
"""What the demo shows of models for segmentation and detection."""

import numpy as np
import pytest
import torch
from dense_models import save_model
from packaging.requirements import Requirement
from PIL import Image

from svit_hf.demo.viewer import open_viewer, respond, with_cell
from svit_hf.tasks.saved_models import open_task_model


@pytest.fixture(params=["semantic_segmentation", "detection"])
def dense_dir(request, tmp_path):
    save_model(request.param, tmp_path / "model", ["cell", "<hole>"])
    return tmp_path / "model"


def test_answer_is_what_the_model_finds(dense_dir, picture_file):
    viewer = open_viewer(str(dense_dir))
    assert viewer.captions[:2] == ("what the model finds", "super tokens")
    expected = open_task_model(dense_dir)
    response = respond(viewer, picture_file, viewer.first_choice)
    assert "It looks for: cell, &lt;hole&gt;." in response.answer
    assert f"{expected.model.num_parameters() / 1e6:.2f} M parameters" in response.answer
    assert [drawing.size for drawing in response.drawings] == [(640, 640), *[(320, 320)] * 4]
    found = expected.draw(Image.open(picture_file)).resize((640, 640))
    # but for the ring around the point
    differs = np.any(np.asarray(response.drawings[0]) != np.asarray(found), axis=-1)
    assert differs[320 - 20 : 320 + 20, 320 - 20 : 320 + 20].any()
    differs[320 - 20 : 320 + 20, 320 - 20 : 320 + 20] = False
    assert not differs.any()


def test_cells_change_what_it_finds_and_are_set_back(dense_dir, picture_file):
    viewer = open_viewer(str(dense_dir))
    before = viewer.model.svit.stages[0].layers[0].attention.cell_size
    seen = []
    predict = viewer.dense.task.predict
    viewer.dense.task.predict = lambda model, pictures: (
        seen.append(viewer.model.svit.stages[0].layers[0].attention.cell_size) or predict(model, pictures)
    )
    respond(viewer, picture_file, with_cell(viewer.first_choice, 8))
    assert seen == [(8, 8)]
    assert viewer.model.svit.stages[0].layers[0].attention.cell_size == before != (8, 8)


def test_space_has_the_whole_model_and_what_it_needs(dense_dir, tmp_path):
    pytest.importorskip("gradio", reason="a Space states the version of gradio that it was tried with")
    from svit_hf.demo.space import write_space

    write_space([open_viewer(str(dense_dir))], [], tmp_path / "space")
    needed = {Requirement(line).name for line in (tmp_path / "space/requirements.txt").read_text().splitlines()}
    assert {"pyarrow", "gradio"} <= needed
    again = open_viewer(str(next((tmp_path / "space/models").iterdir())))
    weights = open_task_model(dense_dir).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.dense.model.state_dict().items())
