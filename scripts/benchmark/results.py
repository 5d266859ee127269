# SPDX-License-Identifier: Apache-2.0
"""What a run measured: stored as JSON, shown as tables and as a chart."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svit_hf.benchmark.report import align
from svit_hf.errors import SViTError
from svit_hf.files import write_text


# inches: width of a chart, height of a bar, of lines, and of what is around them
WIDTH, BAR_HEIGHT, LINES_HEIGHT, MARGIN_HEIGHT = 8.0, 0.24, 3.2, 0.9
# ours, the official operators, everybody else: told apart in black and white too
OURS, OFFICIAL, PEER = "#1b6ca8", "#222222", "#b8b8b8"


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
    """One or more runs."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Results":
        """Read files that `write` wrote, and put their runs one after the other.

        Raises:
            SViTError: If a file cannot be read or is something else.
        """
        results = cls()
        for path in paths:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                results.runs += content["runs"]
                results.cases += [
                    Case(**(case | {"rows": [Row(**row) for row in case["rows"]]})) for case in content["cases"]
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SViTError(
                    f"`render` has {str(path)!r}, which is no result of this benchmark: {error}"
                ) from error
        return results

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


def draw_chart(results: Results, path: Path) -> None:
    """Draw bars of what was measured side by side, and lines of what grows with the image, and save them as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = sweeps(results.cases)
    heights = [
        MARGIN_HEIGHT + (LINES_HEIGHT if len(cases) > 1 else BAR_HEIGHT * len(cases[0].rows)) for cases in groups
    ]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    frames = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for cases, frame in zip(groups, frames[:, 0], strict=True):
        if len(cases) > 1:
            _draw_growth(cases, frame)
        else:
            _draw_bars(cases[0], frame.subplots())
    figure.savefig(path, dpi=120, format="png")


def _draw_bars(case: Case, axes: Any) -> None:
    positions = range(len(case.rows))
    middle, lower, upper = zip(*(row.ratio for row in case.rows), strict=True)
    spans = [[a - b for a, b in zip(middle, lower, strict=True)], [a - b for a, b in zip(upper, middle, strict=True)]]
    colours = [_colour(row.name, case) for row in case.rows]
    axes.barh(positions, middle, xerr=spans, color=colours, error_kw={"elinewidth": 1, "ecolor": "#777777"})
    for position, row in zip(positions, case.rows, strict=True):
        speed = f"{_significant(row.quartiles[0] * 1e3)} ms"
        if row.images_per_second is not None:
            speed = f"{_significant(row.images_per_second)} images/s"
        place = (row.ratio[2], position)
        axes.annotate(speed, place, xytext=(4, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(positions, [row.label for row in case.rows], size=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(upper))
    axes.set_xlabel(f"times as fast as {case.rows[0].label}", size=8)
    _finish(axes, case.title)


def _draw_growth(cases: Sequence[Case], frame: Any) -> None:
    sizes = [case.image_size for case in cases]
    values = {"time": Case.time_per_pixel, "memory": Case.memory_per_pixel}
    panels = frame.subplots(1, len(values))
    for (what, value), axes in zip(values.items(), panels, strict=True):
        for label, numbers in growth_of(cases, value).items():
            if None in numbers or not numbers[0]:
                continue
            style = {OURS: "-", OFFICIAL: ":", PEER: "--"}[_colour(label, cases[0])]
            axes.plot(sizes, [n / numbers[0] for n in numbers], style, marker="o", markersize=3, label=label)
        axes.set_xticks(sizes, [str(size) for size in sizes], size=8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("edge of the image in pixels", size=8)
        _finish(axes, f"{cases[0].task}: {what} per pixel, 1 at {sizes[0]} pixels")
    panels[0].legend(fontsize=6, frameon=False)


def _finish(axes: Any, title: str) -> None:
    axes.tick_params(labelsize=8)
    axes.set_title(title, size=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str, case: Case) -> str:
    if "official" in name:
        return OFFICIAL
    if case.part == "data":
        return OURS if name == "svit-hf" else PEER
    is_ours = case.part not in ("model", "growth") or name.split()[0] == case.rows[0].name.split()[0]
    return OURS if is_ours else PEER


def _significant(value: float) -> str:
    """Write three digits, or all in front of the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _format(value: float | None, text: Callable[[float], str]) -> str | None:
    return None if value is None else text(value)
