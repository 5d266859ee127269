# SPDX-License-Identifier: Apache-2.0
"""The end of a run: SIGTERM and SIGINT as a request to save and leave, and the end of all ranks when one fails.

The others would wait in an all-reduce for ever. A rank that fails says so in the store by which the ranks meet.
A thread on every rank looks there, gives the rank some seconds to end by itself, and then ends its process.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from svit_hf.data.loading import kill_workers
from svit_hf.errors import SViTError, TrainingInterruptedError


FAILED, CLAIMS = "svit_hf.failed", "svit_hf.claims"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN_LOOKS = 0.5
# for a message, the closing of files, and what other ranks raise over lost connections
SECONDS_TO_END = 4.0


@contextmanager
def ending_together() -> Iterator[None]:
    """Have all ranks end within seconds of the first one that fails; only that one raises its error.

    Raises:
        SystemExit: On the other ranks, with the exit status of the first one.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        yield
        return
    store = _get_default_store()
    is_over = threading.Event()
    threading.Thread(target=_watch, args=(store, is_over), daemon=True, name="ends of other ranks").start()
    try:
        yield
    # every rank is told to stop, and every rank saves
    except TrainingInterruptedError:
        is_over.set()
        raise
    except SViTError as error:
        atexit.register(_end, error.exit_code)
        if store.add(CLAIMS, 1) > 1:
            # what all ranks find out, one of them says
            raise SystemExit(error.exit_code) from None
        store.set(FAILED, str(error.exit_code))
        raise
    except Exception:
        # the connection to a rank that failed is lost before anybody has looked into the store
        deadline = time.monotonic() + SECONDS_TO_END / 2
        while time.monotonic() < deadline:
            if (status := _status_of_failure(store)) is not None:
                atexit.register(_end, status)
                raise SystemExit(status) from None
            time.sleep(SECONDS_BETWEEN_LOOKS / 5)
        store.set(FAILED, "1")
        raise
    else:
        is_over.set()


def _watch(store: Any, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS_BETWEEN_LOOKS):
        status = _status_of_failure(store)
        if status is not None:
            # the main thread may wait for ranks that are gone
            time.sleep(SECONDS_TO_END)
            _end(status)


def _end(status: int) -> None:
    """End this process at once: what ranks still have under way would abort an orderly end."""
    kill_workers()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status_of_failure(store: Any) -> int | None:
    """Return the exit status of the rank that failed first; 1 if the store is gone, with the rank that had it."""
    try:
        return int(store.get(FAILED)) if store.check([FAILED]) else None
    # torch raises its own kinds for lost connections, all of them RuntimeErrors
    except RuntimeError:
        return 1


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
