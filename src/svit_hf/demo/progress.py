# SPDX-License-Identifier: Apache-2.0
"""Progress of Transformers' `Trainer`: one bar on a terminal, one line per epoch anywhere else."""

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingProgress(TrainerCallback):
    """Show on stderr how far training is.

    For a `Trainer` with `disable_tqdm=True` and `logging_strategy="epoch"`, whose own `PrinterCallback` is removed.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, and the bar on a terminal."""
        self.started = time.monotonic()
        if sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, desc="training", unit="step", file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the mean loss of the epoch that ended."""
        if not logs or "loss" not in logs:
            return
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
            return
        seconds = time.monotonic() - self.started
        epoch, epochs = round(state.epoch or 0), round(args.num_train_epochs)
        sys.stderr.write(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {logs['loss']:.3f}  {seconds:5.1f} s\n")
        sys.stderr.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar standing."""
        if self.bar is not None:
            self.bar.close()
