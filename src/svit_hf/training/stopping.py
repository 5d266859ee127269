# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as a request to save and leave."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """SIGTERM and SIGINT, noticed instead of obeyed within a `with` block.

    A second SIGINT interrupts at once, without saving. Outside of the main thread, where Python cannot handle signals,
    nothing is noticed.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        try:
            for number in SIGNALS:
                self._earlier[number] = signal.signal(number, self._notice)
        except ValueError:
            sys.stderr.write("not in the main thread: SIGTERM and SIGINT end this run without saving\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True
