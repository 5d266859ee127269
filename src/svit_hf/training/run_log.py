# SPDX-License-Identifier: Apache-2.0
"""The files in which a run says what happened: log.jsonl, and metrics.csv and curves.png, which are made of it.

A row of the log is a function of the recipe and the update, except for `TIMING_FIELDS`: a run that was interrupted
has the same log as one that was not.
"""

import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


LOG, METRICS, CURVES = "log.jsonl", "metrics.csv", "curves.png"
TIMING_FIELDS = frozenset({"time_seconds", "images_per_second", "data_wait_share", "memory_gib", "evaluation_seconds"})
UPDATE, EVALUATION = "update", "evaluation"


class RunLog:
    """Append rows to the log of a run.

    Args:
        run_dir: Folder of the run.
        size: Bytes of the log that belong to the past of this run; what follows, written after the checkpoint that it
            goes on from, is cut off.
    """

    def __init__(self, run_dir: Path, size: int = 0):
        self.run_dir = run_dir
        self._path = run_dir / LOG
        self._file = self._path.open("a", encoding="utf-8")
        if self._path.stat().st_size > size:
            self._file.truncate(size)

    @property
    def size(self) -> int:
        """Bytes of the log, all of them written."""
        self._file.flush()
        return self._path.stat().st_size

    def add(self, kind: str, **values: Any) -> None:
        """Append a row."""
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()

    def draw(self) -> None:
        """Make metrics.csv and curves.png of the log as it is."""
        rows = read_log(self.run_dir)
        evaluations = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == EVALUATION]
        if evaluations:
            with (self.run_dir / METRICS).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(evaluations[0]))
                writer.writeheader()
                writer.writerows(evaluations)
        draw_curves(rows).savefig(self.run_dir / CURVES, dpi=120)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (run_dir / LOG).read_text(encoding="utf-8").splitlines()]


def draw_curves(rows: list[dict[str, Any]]) -> Figure:
    """Draw the loss, the learning rate and the accuracies over the epochs."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
    updates = [row for row in rows if row["kind"] == UPDATE]
    epochs = [row["epoch"] for row in updates]
    # a row without a single good update has no loss
    losses = [float("nan") if row["loss"] is None else row["loss"] for row in updates]
    loss_axes.plot(epochs, losses, color="tab:blue")
    loss_axes.set_ylabel("training loss", color="tab:blue")
    rate_axes = loss_axes.twinx()
    rate_axes.plot(epochs, [row["learning_rate"] for row in updates], color="tab:gray", linewidth=1)
    rate_axes.set_ylabel("learning rate", color="tab:gray")
    for weights, color in (("raw", "tab:orange"), ("ema", "tab:green")):
        chosen = [row for row in rows if row["kind"] == EVALUATION and row["weights"] == weights]
        if chosen:
            accuracies = [100 * row["accuracy"] for row in chosen]
            accuracy_axes.plot(
                [row["epoch"] for row in chosen],
                accuracies,
                color=color,
                label=f"{weights}, best {max(accuracies):.2f} %",
            )
            accuracy_axes.legend(loc="lower right")
    accuracy_axes.set_ylabel("accuracy in %")
    accuracy_axes.set_xlabel("epoch")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
    return figure
