# SPDX-License-Identifier: Apache-2.0
"""Measure several contestants in turns: warm-up, rounds, medians with their quartiles, ratios between neighbours."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F


Work = Callable[[], object]
# seconds that a number of calls takes
Stopwatch = Callable[[Work, int], float]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# a dtype whose products run at less than this share of float32's speed has no arithmetic of its own on the device
EMULATED_SHARE = 0.25
# seconds that one round of a contestant lasts at least: short work is called several times
MIN_SECONDS = 0.05
MAX_CALLS = 10_000


class Spread(NamedTuple):
    """Median of repeated measurements, with the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass
class WallStopwatch:
    """Clock that waits for the device before and after; it counts seconds."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter

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
    """Events in the stream of a CUDA device: what the device needs, or waits for."""

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
    rounds: int,
    min_seconds: float = MIN_SECONDS,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, tuple[float, ...]]:
    """Time contestants in turns, A B C A B C ..., so that a busy moment of the machine meets all of them.

    Args:
        works: What to call, by name of the contestant.
        stopwatch: Gives the seconds of a number of calls.
        rounds: How often everybody has a turn, at least 1.
        min_seconds: How long a turn lasts at least; what is shorter is called more than once.
        after_round: Called when everybody has had a turn.

    Returns:
        Seconds of one call, one entry per round, by name.
    """
    calls = {}
    for name, work in works.items():
        # the first call compiles and allocates, the second finds its memory; the third tells how long a call takes
        stopwatch(work, 2)
        calls[name] = min(max(math.ceil(min_seconds / max(stopwatch(work, 1), 1e-9)), 1), MAX_CALLS)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(stopwatch(work, calls[name]) / calls[name])
        after_round()
    return {name: tuple(measured) for name, measured in seconds.items()}


def spread_of(values: Sequence[float]) -> Spread:
    """Return median and quartiles; of a single value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def speed_ratio(first: Sequence[float], other: Sequence[float]) -> Spread:
    """Return how many times as fast `other` is as `first`, round by round: pairs were measured next to each other."""
    return spread_of([a / b for a, b in zip(first, other, strict=True)])


def made_up_images(batch_size: int, image_size: int, num_channels: int = 3) -> torch.Tensor:
    """Return images that differ at large and at fine scale, `(batch_size, num_channels, image_size, image_size)`."""
    size = (image_size, image_size)
    coarse = F.interpolate(torch.randn(batch_size, num_channels, 8, 8), size=size, mode="bilinear")
    return coarse + 0.5 * torch.randn(batch_size, num_channels, *size)


@contextmanager
def comparable_arithmetic() -> Iterator[None]:
    """Let float32 mean float32 for every contestant, without TensorFloat-32, and compiled code be compiled."""
    precision = torch.get_float32_matmul_precision()
    with (
        # all sizes are fixed, so that searching for the fastest convolution pays
        torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        # falling back to eager code without a word would put its time under the name of the compiled form
        torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True),
    ):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)


def product_speed(dtype: str, size: int, device: torch.device, stopwatch: Stopwatch) -> float:
    """Return the operations per second of a square matrix product, a multiply-accumulate being two."""
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, stopwatch)


def best_seconds(work: Work, stopwatch: Stopwatch) -> float:
    """Return the seconds per call of the fastest of five rounds, after a warm-up: a peak is what can be reached."""
    with torch.inference_mode():
        stopwatch(work, 1)
        calls = min(max(int(MIN_SECONDS / max(stopwatch(work, 1), 1e-9)), 1), 1000)
        return min(stopwatch(work, calls) / calls for _ in range(5))


def is_emulated(dtype: str, device: torch.device, stopwatch: Stopwatch) -> bool:
    """Tell whether a device has no arithmetic of its own for a dtype, by the speed of a small product."""
    if dtype == "fp32":
        return False
    return product_speed(dtype, 256, device, stopwatch) < EMULATED_SHARE * product_speed(
        "fp32", 256, device, stopwatch
    )
