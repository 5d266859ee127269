# SPDX-License-Identifier: Apache-2.0
"""What runs of several seeds say about variants: means, spreads, and differences in a table and in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


HEADINGS = ("variant", "%s", "spread", "difference", "better in", "parameters", "MACs", "seconds")


@dataclass(frozen=True)
class Outcome:
    """Runs of one variant.

    Attributes:
        name: What it is called.
        scores: The best evaluation of each seed, in the order of the seeds.
        num_parameters: Learned numbers.
        multiply_adds: Multiply-accumulates of one image.
        seconds: Training time of each seed.
    """

    name: str
    scores: list[float]
    num_parameters: int
    multiply_adds: int
    seconds: list[float]


def table_of(outcomes: Sequence[Outcome], metric: str) -> list[tuple[str, ...]]:
    """Return the rows of a table; differences are to the first variant, with their standard errors."""
    first = outcomes[0]
    rows = [tuple(heading.replace("%s", metric) for heading in HEADINGS)]
    for outcome in outcomes:
        differences = [score - other for score, other in zip(outcome.scores, first.scores, strict=True)]
        is_first = outcome is first
        rows.append(
            (
                outcome.name,
                f"{fmean(outcome.scores):.4f}",
                _spread(outcome.scores),
                "" if is_first else f"{fmean(differences):+.4f} ± {_standard_error(differences)}",
                "" if is_first else f"{sum(each > 0 for each in differences)} of {len(differences)}",
                f"{outcome.num_parameters:,}",
                f"{outcome.multiply_adds / 1e6:.4g} M",
                f"{fmean(outcome.seconds):.0f}",
            )
        )
    return rows


def _spread(values: Sequence[float]) -> str:
    return f"{stdev(values):.4f}" if len(values) > 1 else "?"


def _standard_error(values: Sequence[float]) -> str:
    return f"{stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else "?"


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
