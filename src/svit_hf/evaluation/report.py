# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: numbers, JSON and tables."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


CONFIDENCE = 0.95
MOST_CLASSES_SHOWN = 50
NUM_WORST_SHOWN = 20


class ClassCounts(NamedTuple):
    """Images of a class, and those that the model gets right."""

    num_images: int
    num_hits: int


class Report(ABC):
    """What reports have in common; they are dataclasses.

    Attributes:
        best_metric: The number by which classifiers are compared.
        log_fields: What a row of a training's log tells.
    """

    best_metric: str
    log_fields: tuple[str, ...]
    num_images: int
    num_broken: int
    num_left_out: int
    num_not_finite: int
    loss: float
    classes: tuple[Any, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images of all processes per second, decoding included."""
        return self.num_images / self.seconds

    def to_json(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite become `None`.

        Args:
            class_names: Names of the model's classes; without them, classes are listed by number.
        """
        values = {name: value for name, value in vars(self).items() if name != "classes"}
        return {
            **finite(values),
            "images_per_second": self.images_per_second,
            # a list, because two classes may have the same name
            "classes": [{"name": name, **counts._asdict()} for name, counts in self.named(class_names)],
        }

    def named(self, class_names: Sequence[str] | None) -> list[tuple[str, Any]]:
        """Return the entry of each class with its name, or with its number without names."""
        names = map(str, range(len(self.classes))) if class_names is None else class_names
        return list(zip(names, self.classes, strict=True))

    @abstractmethod
    def line(self) -> str:
        """Return the most important numbers in a line."""

    @abstractmethod
    def measures(self) -> dict[str, str]:
        """Return what was measured, by its title in a table."""

    @abstractmethod
    def class_table(self, class_names: Sequence[str] | None = None) -> str:
        """Return the numbers by class, which are numbered without names."""

    def rows(self) -> dict[str, str]:
        """Return the lines of a table, by their title."""
        lines = {"images": str(self.num_images), **self.measures(), "images/s": f"{self.images_per_second:.1f}"}
        counted = {
            "  broken, not counted": self.num_broken,
            "  without a class": self.num_left_out,
            "  output not finite": self.num_not_finite,
        }
        return lines | {title: str(count) for title, count in counted.items() if count}

    def table(self) -> str:
        """Return the report for a reader, a line for each number."""
        return "\n".join(f"{title:<24}{value}" for title, value in self.rows().items())


@dataclass(frozen=True)
class ClassificationReport(Report):
    """Numbers of an evaluation, over all processes.

    Attributes:
        num_images: Images that count.
        num_hits: Those whose class the model ranks first.
        num_broken: Images that could not be read, which do not count.
        num_left_out: Images to which the label map gives no class, which do not count.
        num_not_finite: Images for which the model's output was not finite; they count as wrong.
        accuracy: Share of the images whose class is ranked first.
        top5_accuracy: Share of those whose class is among the first five.
        loss: Mean negative log-likelihood of the right class, in nats.
        calibration_error: Expected calibration error over 15 bins of equal width.
        classes: Counts for each class of the model.
        seconds: Duration, from the first batch asked for until all processes have finished.
    """

    num_images: int
    num_hits: int
    num_broken: int
    num_left_out: int
    num_not_finite: int
    accuracy: float
    top5_accuracy: float
    loss: float
    calibration_error: float
    classes: tuple[ClassCounts, ...]
    seconds: float

    best_metric = "accuracy"
    log_fields = ("accuracy", "top5_accuracy", "loss", "calibration_error", "num_images")

    def line(self) -> str:
        """Return the most important numbers in a line."""
        return f"top-1 {self.accuracy:7.2%}  top-5 {self.top5_accuracy:7.2%}  loss {self.loss:.4f}"

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy; inside 0 and 1, and not empty for accuracies of 0 and 1."""
        # scikit-learn brings it along; a second passes while it is imported
        from scipy.stats import binomtest  # type: ignore[import-untyped]

        interval = binomtest(self.num_hits, self.num_images).proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)

    def to_json(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return everything as plain values, see `Report`."""
        return super().to_json(class_names) | {"accuracy_interval": list(self.accuracy_interval)}

    def measures(self) -> dict[str, str]:
        """Return what was measured, by its title in a table."""
        low, high = self.accuracy_interval
        return {
            "accuracy": f"{self.accuracy:.2%}",
            "  95 % interval": f"{low:.2%} to {high:.2%}",
            "top-5 accuracy": f"{self.top5_accuracy:.2%}",
            "loss": f"{self.loss:.4f}",
            "calibration error": f"{self.calibration_error:.4f}",
        }

    def class_table(self, class_names: Sequence[str] | None = None) -> str:
        """Return accuracies by class: of all that have images, or of the worst if these are many."""
        rows = [
            (name, num_hits / num_images, f"{num_hits / num_images:>8.2%}  {num_hits:>5}  {num_images:>6}")
            for name, (num_images, num_hits) in self.named(class_names)
            if num_images
        ]
        return table_of_classes("class", "classes", "accuracy  right  images", rows)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers by their names, with `None` for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def table_of_classes(title: str, plural: str, heading: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Return a table with a line for each class, or for the worst if these are many.

    Args:
        title: What a class is called.
        plural: What several are called.
        heading: Of the numbers.
        rows: Name, score and numbers of each class.
    """
    if len(rows) > MOST_CLASSES_SHOWN:
        title = f"worst {NUM_WORST_SHOWN} of {len(rows)} {plural}"
        rows = sorted(rows, key=lambda row: row[1])[:NUM_WORST_SHOWN]
    width = max(len(title), *(len(name) for name, *_ in rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, _, text in [(title, 0.0, heading), *rows])
