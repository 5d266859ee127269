# SPDX-License-Identifier: Apache-2.0
"""Results as a picture: bars of what was measured side by side, lines of what grows with the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svit_hf.benchmark.report import GROWING, cases_by_sweep, growth_of
from svit_hf.benchmark.results import Case, Results
from svit_hf.extras import require_extra


WIDTH = 8.0
BAR_HEIGHT, LINES_HEIGHT, MARGIN_HEIGHT = 0.24, 3.2, 0.9
# ours, the official operators, everybody else: told apart in black and white too
OURS, OFFICIAL, PEER = "#1b6ca8", "#222222", "#b8b8b8"


def draw_chart(results: Results, path: Path) -> None:
    """Draw all cases below each other, and save the picture as PNG.

    Raises:
        SViTError: If matplotlib is missing.
    """
    require_extra("benchmark", "benchmark")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = cases_by_sweep(results.cases)
    heights = [
        MARGIN_HEIGHT + (LINES_HEIGHT if part == "growth" else BAR_HEIGHT * len(cases[0].rows))
        for part, cases in groups
    ]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    frames = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for (part, cases), frame in zip(groups, frames[:, 0], strict=True):
        if part == "growth":
            _draw_growth(cases, frame)
        else:
            _draw_bars(cases[0], frame.subplots())
    figure.savefig(path, dpi=120, format="png")


def _draw_bars(case: Case, axes: Any) -> None:
    positions = range(len(case.rows))
    lower = [row.ratio - row.quartile_ratios[0] for row in case.rows]
    upper = [row.quartile_ratios[1] - row.ratio for row in case.rows]
    ratios = [row.ratio for row in case.rows]
    colours = [_colour(row.name, case) for row in case.rows]
    axes.barh(positions, ratios, xerr=[lower, upper], color=colours, error_kw={"elinewidth": 1, "ecolor": "#777777"})
    for position, row in zip(positions, case.rows, strict=True):
        speed = f"{row.median_seconds * 1e3:.3g} ms"
        if row.images_per_second is not None:
            speed = f"{row.images_per_second:.3g} images/s"
        axes.annotate(
            speed, (row.quartile_ratios[1], position), xytext=(4, 0), textcoords="offset points", va="center", size=8
        )
    axes.set_yticks(positions, [row.label for row in case.rows], size=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(row.quartile_ratios[1] for row in case.rows))
    axes.set_xlabel(f"times as fast as {case.rows[0].label}", size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(case.title, size=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_growth(cases: Sequence[Case], frame: Any) -> None:
    sizes = [case.image_size for case in cases]
    panels = frame.subplots(1, len(GROWING))
    for (what, value), axes in zip(GROWING.items(), panels, strict=True):
        for label, values in growth_of(cases, value).items():
            if None in values or not values[0]:
                continue
            name = label.rpartition(",")[0]
            style = "-" if _colour(name, cases[0]) == OURS else ":" if _colour(name, cases[0]) == OFFICIAL else "--"
            first = values[0]
            axes.plot(
                sizes,
                [value / first for value in values if value is not None],
                style,
                marker="o",
                markersize=3,
                label=label,
            )
        axes.set_xticks(sizes, [str(size) for size in sizes], size=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("edge of the image in pixels", size=8)
        axes.set_title(f"{cases[0].task}: {what} per pixel, 1 at {sizes[0]} pixels", size=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=6, frameon=False)


def _colour(name: str, case: Case) -> str:
    if "official" in name:
        return OFFICIAL
    if case.part == "data":
        return OURS if name == "svit-hf" else PEER
    if case.part in ("model", "growth"):
        return OURS if name.split()[0] == case.rows[0].name.split()[0] else PEER
    return OURS
