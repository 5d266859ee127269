# SPDX-License-Identifier: Apache-2.0
"""What a run measured, as it is stored: JSON and back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svit_hf.benchmark.machine import Peaks
from svit_hf.benchmark.measuring import Spread, Timing, speed_ratio, spread_of
from svit_hf.errors import SViTError


FORMAT = "svit-hf benchmark 1"


@dataclass(frozen=True)
class Cost:
    """Hold what one call of a contestant does, whoever does it.

    Attributes:
        images: Images per call.
        operations: Arithmetic that the result needs, a multiply-accumulate being two; `None` where nobody counts.
        moved_bytes: Bytes that have to be read and written in any case; `None` where nobody counts.
    """

    images: int = 0
    operations: int | None = None
    moved_bytes: int | None = None


@dataclass(frozen=True)
class Memory:
    """Hold what a contestant occupies.

    Attributes:
        state_bytes: What stays between calls.
        working_bytes: What a call needs on top at its peak; `None` where nobody counts.
    """

    state_bytes: int
    working_bytes: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        """Both together."""
        return None if self.working_bytes is None else self.state_bytes + self.working_bytes


@dataclass(frozen=True)
class Row:
    """Hold what was measured of one contestant.

    Attributes:
        name: Network and form.
        dtype: That it computes in.
        seconds: Of one call, one entry per round.
        calls: Calls per round.
        median_seconds: Median over the rounds.
        quartile_seconds: Lower and upper quartile.
        ratio: Times as fast as the first contestant: median over the rounds.
        quartile_ratios: Lower and upper quartile.
        images_per_second: `None` for single operators.
        giga_macs: Multiply-accumulates of one image in 10^9, or of one call for single operators.
        share_of_peak: Operations per second as a share of the highest measured speed in this dtype.
        share_of_bound: Time that operations or bytes need at the measured peaks, as a share of the time taken.
        state_bytes: Weights, statistics, optimizer: what stays between calls.
        peak_bytes: These, and what a call needs on top at its peak.
        page_faults: Of one call; see `Timing`.
        error: Relative error of its results against the eager float32 model.
    """

    name: str
    dtype: str
    seconds: list[float]
    calls: int
    median_seconds: float
    quartile_seconds: list[float]
    ratio: float
    quartile_ratios: list[float]
    images_per_second: float | None
    giga_macs: float | None
    share_of_peak: float | None
    share_of_bound: float | None
    state_bytes: int
    peak_bytes: int | None
    page_faults: float | None
    error: float | None

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name}, {self.dtype}"


@dataclass(frozen=True)
class Case:
    """Hold what was measured side by side.

    Attributes:
        part: Of the benchmark.
        title: What was measured, in words.
        task: inference or training.
        batch_size: Images, or what takes their place.
        image_size: Edge in pixels.
        rows: The contestants; ratios refer to the first.
    """

    part: str
    title: str
    task: str
    batch_size: int
    image_size: int
    rows: list[Row]


@dataclass(frozen=True)
class Results:
    """Hold one or more runs.

    Attributes:
        machines: One description per run, see `describe_machine`, with `command`, `peaks` and `left_out`: who did not
            take part, and why.
        cases: What was measured.
    """

    machines: list[dict[str, Any]]
    cases: list[Case] = field(default_factory=list)


def make_row(
    name: str,
    dtype: str,
    timing: Timing,
    *,
    first: Timing,
    cost: Cost,
    peaks: Peaks,
    memory: Memory,
    error: float | None = None,
) -> Row:
    """Work out what a timing means."""
    time: Spread = spread_of(timing.seconds)
    ratio = speed_ratio(first, timing)
    bounds = []
    share_of_peak = None
    if cost.operations is not None:
        bounds.append(cost.operations / peaks.operations(dtype))
        share_of_peak = bounds[0] / time.median
    if cost.moved_bytes is not None:
        bounds.append(cost.moved_bytes / peaks.copy)
    return Row(
        name=name,
        dtype=dtype,
        seconds=list(timing.seconds),
        calls=timing.calls,
        median_seconds=time.median,
        quartile_seconds=[time.lower_quartile, time.upper_quartile],
        ratio=ratio.median,
        quartile_ratios=[ratio.lower_quartile, ratio.upper_quartile],
        images_per_second=cost.images / time.median if cost.images else None,
        giga_macs=cost.operations / 2e9 / max(cost.images, 1) if cost.operations is not None else None,
        share_of_peak=share_of_peak,
        share_of_bound=max(bounds) / time.median if cost.moved_bytes is not None else None,
        state_bytes=memory.state_bytes,
        peak_bytes=memory.peak_bytes,
        page_faults=timing.page_faults,
        error=error,
    )


def write_results(results: Results, path: Path) -> None:
    """Write JSON."""
    path.write_text(json.dumps({"format": FORMAT} | asdict(results), indent=1) + "\n", encoding="utf-8")


def read_results(paths: Sequence[Path]) -> Results:
    """Read files that `write_results` wrote, and put their runs one after the other.

    Raises:
        SViTError: If a file cannot be read or is something else.
    """
    results = Results([])
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SViTError(f"`render` has {str(path)!r}, which cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SViTError(f"`render` has {str(path)!r}, which is not in the format {FORMAT!r}; measure anew.")
        results.machines.extend(content["machines"])
        results.cases.extend(
            Case(**{**case, "rows": [Row(**row) for row in case["rows"]]}) for case in content["cases"]
        )
    return results
