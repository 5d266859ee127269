# SPDX-License-Identifier: Apache-2.0
"""How far long work is: one live line on a terminal, and a plain line now and then anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm


class Progress:
    """Progress of one piece of work on stderr, for a `with` statement.

    Args:
        total: How many units there are.
        unit: What is counted, in the plural where it stands behind a number.
        initial: Units that were done earlier.
        is_shown: Whether anything is printed; `False` for all processes but one.
        every_seconds: Seconds between plain lines, where stderr is no terminal.
    """

    def __init__(self, total: int, unit: str, *, initial: int = 0, is_shown: bool = True, every_seconds: float = 30.0):
        self.total, self.unit, self.initial = total, unit, initial
        self.is_shown, self.every_seconds = is_shown, every_seconds
        self.done, self.started = initial, time.monotonic()
        self._next_line = self.started + every_seconds
        self._bar: Any = None
        if is_shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=f" {unit}", file=sys.stderr, leave=False)

    @property
    def has_bar(self) -> bool:
        """Whether this is shown as a bar."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """Count units that are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.is_shown and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + self.every_seconds
            rate = (self.done - self.initial) / max(now - self.started, 1e-9)
            pace = f"{rate:.1f} per second" if rate >= 0.1 else f"{duration(1 / max(rate, 1e-9))} each"
            left = f", {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
            self.say(f"{self.done}/{self.total} {self.unit}, {pace}{left}")

    def note(self, text: str) -> None:
        """Show a text beside the bar; where there is none, as a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.say(text)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self.is_shown:
            say(line)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep Transformers and datasets from drawing bars of their own."""
    # not where nothing is drawn: seconds pass while these are imported
    import datasets
    from transformers.utils import logging

    transformers_draws, datasets_draws = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if transformers_draws:
            logging.enable_progress_bar()
        if datasets_draws:
            datasets.enable_progress_bars()


def say(line: str) -> None:
    """Print a line about progress on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Write a duration as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}" if hours else f"{minutes}m{rest:02d}"
