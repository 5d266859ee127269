# SPDX-License-Identifier: Apache-2.0
"""`svit-hf demo`: which model, which examples, and sentences for what is missing."""

import pytest
from PIL import Image

from svit_hf import extras
from svit_hf.browser_demo.examples import choose_examples
from svit_hf.cli import main


@pytest.fixture
def with_gradio(monkeypatch):
    """Let the command go on to where gradio is imported, whether it is installed or not."""
    monkeypatch.setitem(extras.EXTRAS, "demo", ("json",))


def test_no_model_and_no_quickstart_says_how_to_make_one(with_gradio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "Make one there, in a minute and without downloads, with `svit-hf quickstart`" in capsys.readouterr().err


def test_three_models_are_refused(with_gradio, capsys):
    assert main(["demo", "a", "b", "c"]) == 2
    assert "`models` names 3; the demo shows one, or two beside each other" in capsys.readouterr().err


def test_missing_gradio_is_named_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(extras.EXTRAS, "demo", ("no_such_package",))
    assert main(["demo"]) == 2
    assert 'needs no_such_package; install it with: pip install "svit-hf[demo]"' in capsys.readouterr().err


def test_examples_of_the_quickstart_go_with_its_model(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "quickstart.json").write_text("{}")
    for name in "21":
        Image.new("L", (8, 8)).save(tmp_path / f"images/{name}.png")
    for model in (tmp_path, tmp_path / "model"):
        assert [file.name for file in choose_examples([], [str(model)])] == ["1.png", "2.png"]


def test_named_examples_win_and_bad_ones_are_passed_over(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("bad")
    assert choose_examples([str(tmp_path)], ["model"]) == [tmp_path / "good.png"]


def test_other_models_have_the_photographs_of_scikit_learn(tmp_path):
    pytest.importorskip("sklearn")
    assert [file.name for file in choose_examples([], [str(tmp_path)])] == ["china.jpg", "flower.jpg"]
