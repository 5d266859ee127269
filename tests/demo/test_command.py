# SPDX-License-Identifier: Apache-2.0
"""`svit-hf demo`: which model, and sentences for what is missing."""

import pytest

from svit_hf import extras
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
