# SPDX-License-Identifier: Apache-2.0
"""What a run says on stderr: blocks at both ends, a row per evaluation, and one live line, or plain ones in a file."""

import math
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from svit_hf.progress import Progress, duration


class Console(Progress):
    """What rank 0 says, with a live line on a terminal; every other rank is silent.

    Elsewhere the rows of the log are the plain lines.
    """

    def __init__(self, is_speaking: bool, num_updates: int, update: int):
        super().__init__(num_updates, "updates", initial=update, is_shown=is_speaking, every_seconds=math.inf)

    def block(self, title: str, lines: Mapping[str, object]) -> None:
        """Print names and values."""
        width = max(map(len, lines))
        self.say("\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in lines.items())]))

    def progress(self, row: Mapping[str, Any], seconds_left: float) -> None:
        """Show a row of the log."""
        loss = "none" if row["loss"] is None else f"{row['loss']:.3f}"
        skipped = f" SKIPPED {row['skipped_updates']}" if row["skipped_updates"] else ""
        text = (
            f"loss {loss} lr {row['learning_rate']:.2e} {row['images_per_second']:.0f} img/s "
            f"wait {row['data_wait_share']:.0%} mem {row['memory_gib']:.1f}G{skipped}"
        )
        if self.has_bar:
            self.note(text)
        else:
            place = f"epoch {row['epoch']:.2f} update {row['update']}/{self.total}"
            self.say(f"{place} {text} eta {duration(seconds_left)}")


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
