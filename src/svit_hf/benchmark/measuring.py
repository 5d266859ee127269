# SPDX-License-Identifier: Apache-2.0
"""Take time: warm-up, interleaved repeats, medians with their spread, ratios of what was measured side by side."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


try:
    import resource
except ImportError:  # Windows counts page faults elsewhere
    resource = None  # type: ignore[assignment]

Work = Callable[[], object]

# seconds that one repeat lasts at least: short work is called several times
MIN_SECONDS = 0.05
MAX_CALLS = 10_000


class Spread(NamedTuple):
    """Hold the median of repeated measurements, and the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Timing:
    """Hold the repeats of one contestant.

    Attributes:
        seconds: Of one call, one entry per repeat, in the order of the rounds.
        calls: Calls per repeat.
        page_faults: Pages that one call had mapped anew, the median over the repeats; close to 0 where the memory
            allocator is settled. `None` where the system does not count them.
    """

    seconds: tuple[float, ...]
    calls: int
    page_faults: float | None


# seconds that a number of calls takes
Stopwatch = Callable[[Work, int], float]


class WallStopwatch:
    """Time calls by a clock, waiting for the device before and after.

    Args:
        device: What the work runs on.
        clock: Returns seconds.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device = device
        self.clock = clock

    def __call__(self, work: Work, calls: int) -> float:
        """Return the seconds that `calls` calls take."""
        self._wait()
        start = self.clock()
        for _ in range(calls):
            work()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


class CudaStopwatch:
    """Time calls on a CUDA device by events in its stream: what the device needs, or waits for."""

    def __call__(self, work: Work, calls: int) -> float:
        """Return the seconds that `calls` calls take."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


def stopwatch_for(device: torch.device) -> Stopwatch:
    """Return the most exact stopwatch that a device has."""
    return CudaStopwatch() if device.type == "cuda" else WallStopwatch(device)


def measure_interleaved(
    works: Mapping[str, Work],
    stopwatch: Stopwatch,
    *,
    repeats: int,
    min_seconds: float = MIN_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Time several contestants in turns, A B C A B C ..., so that what the machine does meanwhile meets all of them.

    Args:
        works: What to call, by name of the contestant.
        stopwatch: Gives the seconds of a number of calls.
        repeats: Rounds, at least 1.
        min_seconds: How long a contestant runs per round at least; what is shorter is called more than once.
        say: Gets a line per contestant as it warms up.

    Returns:
        The timings, by name.
    """
    calls = {}
    for name, work in works.items():
        say(name)
        # the first call compiles and allocates, the second finds its memory; the third tells how long a call takes
        stopwatch(work, 2)
        calls[name] = min(max(math.ceil(min_seconds / max(stopwatch(work, 1), 1e-9)), 1), MAX_CALLS)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    faults: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            faults_before = _count_page_faults()
            seconds[name].append(stopwatch(work, calls[name]) / calls[name])
            faults[name].append((_count_page_faults() - faults_before) / calls[name])
    return {
        name: Timing(tuple(seconds[name]), calls[name], statistics.median(faults[name]) if resource else None)
        for name in works
    }


def spread_of(values: Sequence[float]) -> Spread:
    """Return median and quartiles; of a single value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def speed_ratio(first: Timing, other: Timing) -> Spread:
    """Return how many times faster `other` is than `first`, round by round: pairs were measured next to each other."""
    return spread_of([a / b for a, b in zip(first.seconds, other.seconds, strict=True)])


def _count_page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
