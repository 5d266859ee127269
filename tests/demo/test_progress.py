# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from svit_hf.demo.progress import TrainingProgress


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    """Return a function that goes through two epochs of three steps, and gives what was shown."""

    def run(is_terminal):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
        arguments = TrainingArguments(output_dir=tmp_path, num_train_epochs=2, use_cpu=True, report_to="none")
        state, control, progress = TrainerState(max_steps=6), TrainerControl(), TrainingProgress()
        progress.on_train_begin(arguments, state, control)
        for epoch in (1, 2):
            for _ in range(3):
                progress.on_step_end(arguments, state, control)
            state.epoch = float(epoch)
            progress.on_log(arguments, state, control, logs={"loss": 0.25 * epoch})
        progress.on_log(arguments, state, control, logs={"train_runtime": 3.0})
        progress.on_train_end(arguments, state, control)
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return run


def test_a_line_per_epoch_without_a_terminal(show):
    lines = show(is_terminal=False).splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["epoch", "1/2", "loss", "0.250"],
        ["epoch", "2/2", "loss", "0.500"],
    ]


def test_a_bar_on_a_terminal(show):
    shown = show(is_terminal=True)
    assert "epoch" not in shown
    last = shown.rstrip().rpartition("\r")[2]
    assert "6/6" in last
    assert "loss=0.500" in last
