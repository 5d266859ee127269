# SPDX-License-Identifier: Apache-2.0
"""What a run measured: stored as JSON, and shown as tables."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svit_hf.benchmark.report import align
from svit_hf.files import write_text


@dataclass(frozen=True)
class Row:
    """Measurements of one contestant.

    Attributes:
        name: Network and form.
        dtype: That it computes in.
        seconds: Of one call, one entry per round.
        quartiles: Median, lower and upper quartile of the seconds.
        ratio: Times as fast as the first contestant, round by round: median, lower and upper quartile.
        images_per_second: `None` for single operators.
        giga_macs: Multiply-accumulates of one image in 10^9, or of one call for single operators.
        share_of_peak: Operations per second as a share of the highest measured speed in this dtype.
        share_of_bound: Time that operations or bytes need at the measured peaks, as a share of the time taken.
        state_bytes: Weights, statistics, optimizer: what stays between calls.
        peak_bytes: These, and what a call needs on top at its peak.
        error: Relative error of its results against the eager float32 model.
    """

    name: str
    dtype: str
    seconds: list[float]
    quartiles: list[float]
    ratio: list[float]
    images_per_second: float | None = None
    giga_macs: float | None = None
    share_of_peak: float | None = None
    share_of_bound: float | None = None
    state_bytes: int = 0
    peak_bytes: int | None = None
    error: float | None = None

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name}, {self.dtype}"


@dataclass(frozen=True)
class Case:
    """Contestants that were measured side by side; ratios refer to the first."""

    part: str
    title: str
    task: str
    batch_size: int
    image_size: int
    rows: list[Row]

    def time_per_pixel(self, row: Row) -> float:
        """Return nanoseconds."""
        return row.quartiles[0] / (self.batch_size * self.image_size**2) * 1e9

    def memory_per_pixel(self, row: Row) -> float | None:
        """Return the bytes that a call needs beyond what stays: weights are not what grows."""
        bytes_of_call = None if row.peak_bytes is None else row.peak_bytes - row.state_bytes
        return None if bytes_of_call is None else bytes_of_call / (self.batch_size * self.image_size**2)


@dataclass
class Results:
    """Runs, and what they measured."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    def text(self) -> str:
        """Return what the terminal shows: a table per case, and of growth sweeps one of time and one of memory."""
        parts = ["\n".join(f"{name}: {value}" for name, value in run.items()) for run in self.runs]
        for cases in sweeps(self.cases):
            if len(cases) > 1:
                parts += [_growth_table(cases, "ns", Case.time_per_pixel)]
                parts += [_growth_table(cases, "bytes", Case.memory_per_pixel)]
            parts += [f"{case.title}\n{_case_table(case)}" for case in cases]
        return "\n\n".join([*parts, LEGEND])


LEGEND = """\
ms: median of a call, with its quartiles. times: as fast as the first contestant, median of the ratios round by round.
of peak: arithmetic per second, of the highest measured in this dtype. of bound: time that arithmetic or bytes need at
the measured peaks, of the time taken. peak MB: weights, statistics, optimizer states, and what a call needs on top.
error: relative, in norm, against the eager float32 model."""

# heading, and the cell of a row; a column without any cell is left away
_COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "contestant": lambda row: row.name,
    "dtype": lambda row: row.dtype,
    "ms": lambda row: _significant(row.quartiles[0] * 1e3),
    "quartiles": lambda row: " - ".join(_significant(seconds * 1e3) for seconds in row.quartiles[1:]),
    "times": lambda row: f"{row.ratio[0]:.2f}",
    "images/s": lambda row: _format(row.images_per_second, _significant),
    "GMACs": lambda row: _format(row.giga_macs, "{:.2f}".format),
    "of peak": lambda row: _format(row.share_of_peak, "{:.0%}".format),
    "of bound": lambda row: _format(row.share_of_bound, "{:.0%}".format),
    "peak MB": lambda row: _format(row.peak_bytes, lambda count: f"{count / 1e6:,.0f}"),
    "error": lambda row: _format(row.error, "{:.0e}".format),
}


def sweeps(cases: Sequence[Case]) -> list[list[Case]]:
    """Put neighbouring cases of one growth sweep together, every other case on its own."""
    groups: list[list[Case]] = []
    for case in cases:
        last = groups[-1][-1] if groups else None
        if last and last.part == case.part == "growth" and last.image_size < case.image_size:
            groups[-1].append(case)
        else:
            groups.append([case])
    return groups


def growth_of(cases: Sequence[Case], value: Callable[[Case, Row], float | None]) -> dict[str, list[float | None]]:
    """Return a value per size, by contestant; `None` where somebody did not take part."""
    found = [{row.label: value(case, row) for row in case.rows} for case in cases]
    labels = dict.fromkeys(label for values in found for label in values)
    return {label: [values.get(label) for values in found] for label in labels}


def _growth_table(cases: Sequence[Case], unit: str, value: Callable[[Case, Row], float | None]) -> str:
    rows = [("contestant", *(str(case.image_size) for case in cases), "growth")]
    for label, values in growth_of(cases, value).items():
        first, last = values[0], values[-1]
        growth = f"{last / first:.2f}" if first and last else ""
        rows.append((label, *(_format(number, _significant) or "" for number in values), growth))
    return f"{cases[0].task}: {unit} per pixel by edge of the image, and last by first\n{align(rows)}"


def _case_table(case: Case) -> str:
    cells = {heading: [cell(row) for row in case.rows] for heading, cell in _COLUMNS.items()}
    shown = {heading: column for heading, column in cells.items() if any(column)}
    return align([tuple(shown), *(tuple(text or "" for text in row) for row in zip(*shown.values(), strict=True))])


def _significant(value: float) -> str:
    """Write three digits, or all in front of the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _format(value: float | None, text: Callable[[float], str]) -> str | None:
    return None if value is None else text(value)
