# SPDX-License-Identifier: Apache-2.0
"""What the page shows, without a page: answers, drawings, and cells that are set otherwise for one forward pass."""

import threading

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig

from svit_hf.demo.viewer import (
    HINT,
    LOOKS_KEPT,
    Choice,
    Viewer,
    open_viewer,
    point_clicked,
    respond,
    with_cell,
)
from svit_hf.errors import SViTError


def probabilities(viewer, picture_file, choice):
    picture = Image.open(picture_file).convert("RGB")
    return viewer.look(picture_file, picture, choice.cells).recording.probabilities


def test_first_choice_is_the_last_layer_of_the_first_stage_with_super_tokens(viewer):
    assert viewer.first_choice == Choice(1, 1, ((4, 4), (2, 2), (1, 1), (1, 1)))
    assert viewer.grids == ((16, 16), (8, 8), (4, 4), (2, 2))


def test_response_has_classes_time_and_drawings(viewer, picture_file):
    response = respond(viewer, picture_file, viewer.first_choice)
    assert response.answer.count("<li>") == 5
    assert "&lt;b&gt;cat" in response.answer
    assert "<b>cat" not in response.answer
    assert " ms</b> for this picture on CPU" in response.answer
    assert response.layer_text == "16 x 16 tokens in cells of 4: 4 x 4 super tokens attend to each other."
    assert [drawing.size for drawing in response.drawings] == [(640, 640)] + [(320, 320)] * 4


def test_layer_without_super_tokens_has_fewer_drawings(viewer, picture_file):
    response = respond(viewer, picture_file, Choice(3, 1, viewer.cells))
    assert [drawing is None for drawing in response.drawings] == [False, True, True, True, False]
    assert response.layer_text == "4 x 4 tokens, which all attend to each other."


def test_cells_change_the_answer_and_are_set_back(viewer, picture_file):
    own = probabilities(viewer, picture_file, viewer.first_choice)
    changed = with_cell(viewer.first_choice, 8)
    assert changed.cells == ((8, 8), (2, 2), (1, 1), (1, 1))
    assert not torch.equal(probabilities(viewer, picture_file, changed), own)
    text = respond(viewer, picture_file, changed).layer_text
    assert "in cells of 8: 2 x 2 super tokens" in text
    assert text.endswith("Trained with a cell of 4.")
    # a stage that was trained without super tokens gets some
    assert respond(viewer, picture_file, with_cell(Choice(3, 1, viewer.cells), 2)).drawings[1] is not None

    layers = [layer.attention.cell_size for stage in viewer.model.svit.stages for layer in stage.layers]
    assert layers == [(4, 4), (2, 2), (2, 2), (1, 1), (1, 1)]
    viewer._looks.clear()
    assert torch.equal(probabilities(viewer, picture_file, viewer.first_choice), own)


def test_cells_are_set_back_after_an_error(viewer, picture_file, monkeypatch):
    monkeypatch.setattr(viewer, "_time", lambda pixel_values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probabilities(viewer, picture_file, with_cell(viewer.first_choice, 8))
    assert viewer.model.svit.stages[0].layers[0].attention.cell_size == (4, 4)


def test_the_same_question_costs_no_forward_pass_and_memory_is_bounded(viewer, picture_file):
    calls = []
    viewer.model.register_forward_hook(lambda *arguments: calls.append(1))
    for point in ((0.1, 0.1), (0.9, 0.9)):
        respond(viewer, picture_file, Choice(1, 1, viewer.cells, point))
    # one is recorded, one is timed
    assert len(calls) == 2
    for cell in range(2, 2 + LOOKS_KEPT + 3):
        respond(viewer, picture_file, with_cell(viewer.first_choice, cell))
    assert len(viewer._looks) == LOOKS_KEPT


def test_what_a_visitor_sends_is_moved_to_what_there_is(viewer):
    sent = Choice(99, -3, ((10_000, 1), (0, 2)), (-5.0, 7.0))
    allowed = viewer.allowed(sent)
    assert allowed == Choice(4, 1, ((16, 1), (1, 2), (1, 1), (1, 1)), (0.0, 1.0))


def test_many_tokens_are_not_offered_to_attend_to_each_other(model_dir):
    # 75 x 75 tokens in the first stage: 5625 that all attend to each other would take gigabytes
    large = open_viewer(str(model_dir))
    large.preprocessing.shape = (3, 300, 300)
    assert large.grids[0] == (75, 75)
    assert large.cell_range(1) == (3, 16)
    assert large.cell_range(3) == (1, 16)


def test_visitors_at_the_same_time_get_their_own_answers(viewer, picture_file):
    choices = [with_cell(viewer.first_choice, cell) for cell in (2, 4, 8, 16)]
    alone = [probabilities(viewer, picture_file, choice) for choice in choices]
    viewer._looks.clear()
    found = {}

    def ask(number):
        found[number] = probabilities(viewer, picture_file, choices[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        torch.testing.assert_close(found[number], expected)


def test_no_picture_and_a_bad_one_show_nothing(viewer, tmp_path):
    (tmp_path / "bad.png").write_text("<script>")
    for file, answer in ((None, HINT), (str(tmp_path / "bad.png"), "")):
        response = respond(viewer, file, viewer.first_choice)
        assert (response.answer, set(response.drawings)) == (answer, {None})


@pytest.mark.parametrize(
    ("drawing", "pixel", "point"),
    [(0, (0, 0), (0, 0)), (0, (320, 160), (0.5, 0.25)), (4, (320, 160), (1, 0.5)), (1, (999, -1), (1, 0))],
)
def test_clicked_pixel_becomes_shares(viewer, drawing, pixel, point):
    assert point_clicked(viewer, drawing, pixel) == pytest.approx(point)


def test_other_models_are_refused(viewer):
    other = AutoModelForImageClassification.from_config(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    )
    with pytest.raises(SViTError, match="'other' is of the kind 'resnet'; the demo shows SViT"):
        Viewer("other", other, viewer.preprocessing)


def test_name_of_a_run_is_its_own(model_dir, tmp_path):
    model_dir.rename(tmp_path / "model")
    assert open_viewer(str(tmp_path / "model")).name == tmp_path.name
