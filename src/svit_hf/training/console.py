# SPDX-License-Identifier: Apache-2.0
"""What a run says on stderr: blocks at both ends, a row per evaluation, and one live line, or plain ones in a file."""

import math
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from svit_hf.progress import Progress, duration, say


class Console:
    """Output of rank 0; every other rank is silent."""

    def __init__(self, is_speaking: bool, num_updates: int):
        self.is_speaking = is_speaking
        self.num_updates = num_updates
        self._live: Progress | None = None

    def say(self, text: str) -> None:
        """Print a line, above the live one."""
        if self._live is not None:
            self._live.say(text)
        elif self.is_speaking:
            say(text)

    def block(self, title: str, lines: Mapping[str, object]) -> None:
        """Print names and values."""
        width = max(map(len, lines))
        self.say("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in lines.items())]))

    def start(self, update: int) -> None:
        """Begin the live line, if this is a terminal; elsewhere the rows of the log are the plain lines."""
        self._live = Progress(
            self.num_updates, "updates", initial=update, is_shown=self.is_speaking, every_seconds=math.inf
        )

    def advance(self) -> None:
        """Move the live line by an update."""
        if self._live is not None:
            self._live.advance()

    def progress(self, row: Mapping[str, Any], seconds_left: float) -> None:
        """Show a row of the log."""
        loss = "none" if row["loss"] is None else f"{row['loss']:.3f}"
        skipped = f" SKIPPED {row['skipped_updates']}" if row["skipped_updates"] else ""
        text = (
            f"loss {loss} lr {row['learning_rate']:.2e} {row['images_per_second']:.0f} img/s "
            f"wait {row['data_wait_share']:.0%} mem {row['memory_gib']:.1f}G{skipped}"
        )
        if self._live is not None and self._live.has_bar:
            self._live.note(text)
        else:
            place = f"epoch {row['epoch']:.2f} update {row['update']}/{self.num_updates}"
            self.say(f"{place} {text} eta {duration(seconds_left)}")

    def close(self) -> None:
        """End the live line."""
        if self._live is not None:
            self._live.close()


class Stopwatch:
    """Time, images and time spent waiting for data between two rows of the log."""

    def __init__(self, device: torch.device):
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Start an interval."""
        self.waited, self.num_images, self.started = 0.0, 0, time.perf_counter()

    def timing(self) -> dict[str, float]:
        """Return the timing fields of a row, and start the next interval."""
        seconds = time.perf_counter() - self.started
        fields = {
            "time_seconds": round(seconds, 3),
            "images_per_second": round(self.num_images / seconds, 1),
            "data_wait_share": round(self.waited / seconds, 4),
            "memory_gib": round(self._used_bytes() / 2**30, 2),
        }
        self.restart()
        return fields

    def _used_bytes(self) -> int:
        """Return the most that was allocated on a GPU so far, or what this process occupies on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        occupied: int = psutil.Process().memory_info().rss
        return occupied
