# SPDX-License-Identifier: Apache-2.0
"""A picture of an ablation: every run, and mean and spread of each variant."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from svit_hf.ablation.table import Outcome


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_outcomes(outcomes: Sequence[Outcome], metric: str) -> "Figure":
    """Draw a line for each variant, in the order of the table: a dot for each seed, mean and standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.4 * len(outcomes)), layout="constrained")
    axes = figure.subplots()
    for place, outcome in enumerate(outcomes):
        axes.plot(outcome.scores, [place] * len(outcome.scores), "o", color="tab:blue", alpha=0.5, markersize=5)
        spread = stdev(outcome.scores) if len(outcome.scores) > 1 else 0.0
        axes.errorbar(fmean(outcome.scores), place, xerr=spread, fmt="|", color="black", capsize=4, markersize=14)
    axes.set_yticks(range(len(outcomes)), [outcome.name for outcome in outcomes])
    axes.invert_yaxis()
    axes.set_xlabel(metric.replace("_", " "))
    axes.grid(alpha=0.3)
    return figure
