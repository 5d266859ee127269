# SPDX-License-Identifier: Apache-2.0
"""Results as text: tables for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from svit_hf.benchmark.results import Case, Results, Row


class Table(NamedTuple):
    """Hold a title, the names of the columns, and one list of cells per row; the first column is text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


# heading, and the cell of a row; a column without any cell is left away
_COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "contestant": lambda row: row.name,
    "dtype": lambda row: row.dtype,
    "ms": lambda row: _significant(row.median_seconds * 1e3),
    "quartiles": lambda row: " - ".join(_significant(seconds * 1e3) for seconds in row.quartile_seconds),
    "times": lambda row: f"{row.ratio:.2f}",
    "images/s": lambda row: _format(row.images_per_second, _significant),
    "GMACs": lambda row: _format(row.giga_macs, lambda value: f"{value:.2f}"),
    "of peak": lambda row: _format(row.share_of_peak, lambda share: f"{share:.0%}"),
    "of bound": lambda row: _format(row.share_of_bound, lambda share: f"{share:.0%}"),
    "peak MB": lambda row: _format(row.peak_bytes, lambda count: f"{count / 1e6:,.0f}"),
    "faults": lambda row: _format(row.page_faults, lambda count: f"{count:,.0f}"),
    "error": lambda row: _format(row.error, lambda error: f"{error:.0e}"),
}

LEGEND = """\
ms: median of a call, with its quartiles. times: as fast as the first contestant, median of the ratios round by round.
of peak: arithmetic per second, of the highest measured in this dtype. of bound: time that arithmetic or bytes need at
the measured peaks, of the time taken. peak MB: weights, statistics, optimizer states, and what a call needs on top.
faults: pages mapped anew per call. error: relative, against the eager float32 model."""


def tables_of(results: Results) -> list[Table]:
    """Return a table per case, and one of time and one of memory for all sizes of a growth sweep."""
    tables = []
    for part, cases in cases_by_sweep(results.cases):
        if part == "growth":
            tables += [_growth_table(cases, _time_per_pixel, "ns"), _growth_table(cases, _bytes_per_pixel, "bytes")]
        tables += [_case_table(case) for case in cases]
    return tables


def text_of(results: Results) -> str:
    """Return what the terminal shows."""
    parts = [_describe(machine) for machine in results.machines]
    for table in tables_of(results):
        cells = [table.columns, *table.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
        lines = [
            "  ".join(_align(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        parts.append("\n".join([table.title, *(line.rstrip() for line in lines)]))
    return "\n\n".join([*parts, LEGEND])


def markdown_of(results: Results) -> str:
    """Return tables for a document, each machine with the command that measured on it."""
    parts = [f"    {machine['command']}\n\n{_describe(machine)}" for machine in results.machines]
    for table in tables_of(results):
        rule = ["---", *["---:"] * (len(table.columns) - 1)]
        rows = [table.columns, rule, *table.rows]
        parts.append("\n".join([f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def growth_of(cases: Sequence[Case], value: Callable[[Case, Row], float | None]) -> dict[str, list[float | None]]:
    """Return a value per size, by contestant; `None` where somebody did not take part."""
    labels = dict.fromkeys(row.label for case in cases for row in case.rows)
    found = [{row.label: value(case, row) for row in case.rows} for case in cases]
    return {label: [values.get(label) for values in found] for label in labels}


def _time_per_pixel(case: Case, row: Row) -> float:
    return row.median_seconds / (case.batch_size * case.image_size**2) * 1e9


def _bytes_per_pixel(case: Case, row: Row) -> float | None:
    if row.peak_bytes is None:
        return None
    # weights are not what grows
    return (row.peak_bytes - row.state_bytes) / (case.batch_size * case.image_size**2)


GROWING = {"time": _time_per_pixel, "memory": _bytes_per_pixel}


def _growth_table(cases: Sequence[Case], value: Callable[[Case, Row], float | None], unit: str) -> Table:
    rows = []
    for label, values in growth_of(cases, value).items():
        known = [value for value in values if value is not None]
        growth = f"{known[-1] / known[0]:.2f}" if len(known) == len(values) and known[0] > 0 else ""
        rows.append([label, *(_format(value, _significant) or "" for value in values), growth])
    sizes = [str(case.image_size) for case in cases]
    title = f"{cases[0].task}: {unit} per pixel by edge of the image, and last by first"
    return Table(title, ["contestant", *sizes, "growth"], rows)


def _case_table(case: Case) -> Table:
    cells = {heading: [cell(row) for row in case.rows] for heading, cell in _COLUMNS.items()}
    shown = {heading: column for heading, column in cells.items() if any(text is not None for text in column)}
    rows = [[text or "" for text in row] for row in zip(*shown.values(), strict=True)]
    return Table(case.title, list(shown), rows)


def cases_by_sweep(cases: Iterable[Case]) -> list[tuple[str, list[Case]]]:
    """Put neighbouring cases of one growth sweep together, every other case on its own."""
    groups: list[tuple[str, list[Case]]] = []
    for case in cases:
        last = groups[-1][1][-1] if groups else None
        continues = last is not None and last.part == case.part == "growth" and last.task == case.task
        if continues and last is not None and last.image_size < case.image_size:
            groups[-1][1].append(case)
        else:
            groups.append((case.part, [case]))
    return groups


def _describe(machine: dict[str, Any]) -> str:
    peaks = machine["peaks"]
    speeds = [
        f"{dtype} {_significant(speed / 1e9)} and {_significant(peaks['convolution'][dtype] / 1e9)} GFLOP/s"
        for dtype, speed in peaks["matrix_product"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['device_name']} ({machine['instructions']}), {machine['threads']} threads; {machine['system']}",
        f"{versions}, Python {machine['python']}; commit {machine['commit']}",
        f"peaks, matrix product and 1x1 convolution: {'; '.join(speeds)}; copy {peaks['copy'] / 1e9:.1f} GB/s",
        f"memory allocator: {machine['memory_allocator']}",
        *(f"left out: {reason}" for reason in machine["left_out"]),
    ]
    return "\n".join(lines)


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _significant(value: float) -> str:
    """Write three digits, or all in front of the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _format(value: float | None, text: Callable[[float], str]) -> str | None:
    return None if value is None else text(value)
