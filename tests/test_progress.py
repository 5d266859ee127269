# SPDX-License-Identifier: Apache-2.0
import io
import sys

import pytest

from svit_hf.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_tell_how_far_it_is(capsys):
    with Progress(40, "images", initial=10, every_seconds=0) as progress:
        progress.advance(10)
        progress.note("loss 1.5")
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["20/40 images", "loss 1.5", "21/40 images"]
    assert lines[0].endswith(" left")


def test_short_work_prints_nothing(capsys):
    with Progress(40, "images") as progress:
        progress.advance(40)
    assert capsys.readouterr() == ("", "")


def test_other_processes_print_nothing(capsys):
    with Progress(40, "images", is_shown=False, every_seconds=0) as progress:
        progress.advance(10)
        progress.note("loss 1.5")
        progress.say("a line")
    assert capsys.readouterr() == ("", "")


def test_terminal_has_one_bar_and_lines_above_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(40, "images", every_seconds=0) as progress:
        progress.advance(10)
        progress.say("a line")
        progress.note("loss 1.5")
    shown = terminal.getvalue()
    assert "\ra line\n" in shown
    assert "10/40" in shown
    assert "loss 1.5" in shown
    assert "per second" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(5, "0m05"), (65, "1m05"), (3600, "1h00"), (7380, "2h03")])
def test_duration(seconds, text):
    assert duration(seconds) == text
