# SPDX-License-Identifier: Apache-2.0
"""The files in which a run says what happened: log.jsonl, and metrics.csv and curves.png, which are made of it.

A row of the log is a function of the recipe and the update, except for `TIMING_FIELDS`: a run that was interrupted
has the same log as one that was not.
"""

import csv
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svit_hf.extras import install_hint
from svit_hf.files import whole_file


if TYPE_CHECKING:
    from matplotlib.figure import Figure


LOG, METRICS, CURVES = "log.jsonl", "metrics.csv", "curves.png"
TIMING_FIELDS = frozenset({"time_seconds", "images_per_second", "data_wait_share", "memory_gib", "evaluation_seconds"})
UPDATE, EVALUATION = "update", "evaluation"
# what the curve of evaluations shows, the first that there is
CURVE_METRICS = ("accuracy", "mean_average_precision", "mean_iou", "map")


class RunLog:
    """Log of a run, to which rows are appended.

    Rows that do not belong to the past of the run, written after the checkpoint that it goes on from, are cut off, and
    so is whatever follows a row that is damaged.

    Args:
        run_dir: Folder of the run.
        updates: Last update of the past by the kind of row, `UPDATE` or `EVALUATION`.
        size: Bytes of the log that the past is known to have had.
        say: Says what is missing.

    Attributes:
        problem: Why a row could not be written, if one could not; nothing is written after it, and `sync` raises it.
    """

    def __init__(
        self,
        run_dir: Path,
        updates: dict[str, int] | None = None,
        size: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.run_dir = run_dir
        self.problem: OSError | None = None
        self._path = run_dir / LOG
        self._can_draw = find_spec("matplotlib") is not None
        # without a buffer: what a full disk refuses must not be written later
        self._file = self._path.open("ab", buffering=0)
        past = _whole_rows(self._path.read_bytes(), updates or {})
        self._file.truncate(past)
        if past < size:
            say(f"{LOG} has lost rows: {past} of {size} bytes are left of the time before this checkpoint")
        if not self._can_draw:
            say(f"{CURVES} is not drawn, which needs matplotlib: {install_hint('curves')}")

    def sync(self) -> int:
        """Wait until the log is on the disk, and return its size in bytes.

        Raises:
            OSError: If a row could not be written.
        """
        if self.problem is not None:
            raise self.problem
        os.fsync(self._file.fileno())
        return self._path.stat().st_size

    def add(self, kind: str, **values: Any) -> None:
        """Append a row; what goes wrong is for `sync`, which is called where all ranks can be told."""
        row = (json.dumps({"kind": kind, **values}) + "\n").encode()
        try:
            while row and self.problem is None:
                row = row[self._file.write(row) :]
        except OSError as error:
            self.problem = error

    def draw(self) -> None:
        """Make metrics.csv and curves.png of the log as it is; the latter if there is matplotlib."""
        self.sync()
        rows = read_log(self.run_dir)
        evaluations = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == EVALUATION]
        if evaluations:
            with whole_file(self.run_dir / METRICS) as path, path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(evaluations[0]))
                writer.writeheader()
                writer.writerows(evaluations)
        if self._can_draw:
            with whole_file(self.run_dir / CURVES) as path:
                draw_curves(rows).savefig(path, dpi=120, format="png")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _whole_rows(content: bytes, updates: dict[str, int]) -> int:
    """Return the length of the rows at the start that are whole and belong to the past."""
    length = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
            is_past = row["update"] <= updates[row["kind"]]
        except (ValueError, KeyError, TypeError):
            break
        if not (is_past and line.endswith(b"\n")):
            break
        length += len(line)
    return length


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log."""
    return [json.loads(line) for line in (run_dir / LOG).read_text(encoding="utf-8").splitlines()]


def draw_curves(rows: list[dict[str, Any]]) -> "Figure":
    """Draw the loss, the learning rate and the accuracies over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    name = CURVE_METRICS[0]
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
            name = next(name for name in CURVE_METRICS if name in chosen[0])
            # without any object there is no average precision
            accuracies = [float("nan") if row[name] is None else 100 * row[name] for row in chosen]
            accuracy_axes.plot(
                [row["epoch"] for row in chosen],
                accuracies,
                color=color,
                label=f"{weights}, best {max(accuracies):.2f} %",
            )
            accuracy_axes.legend(loc="lower right")
    accuracy_axes.set_ylabel(f"{name.replace('_', ' ')} in %")
    accuracy_axes.set_xlabel("epoch")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
    return figure
