# SPDX-License-Identifier: Apache-2.0
"""Evaluate a saved model for segmentation or detection: every picture counts once, over any number of processes."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from svit_hf.data.decoding import NUM_LISTED, BadImage
from svit_hf.data.loading import Batch, EvaluationLoader, workers_per_rank
from svit_hf.data.options import DataOptions
from svit_hf.evaluation.classifier import AUTOCAST_DTYPES, processes
from svit_hf.evaluation.options import Precision, require_positive
from svit_hf.progress import Progress
from svit_hf.tasks.average_precision import map_of_class
from svit_hf.tasks.measuring import DenseReport
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.saved_models import TaskModel
from svit_hf.tasks.task import Ranks


@dataclass(frozen=True)
class TaskReport:
    """Numbers of an evaluation for a reader.

    Attributes:
        measured: The numbers.
        labels: Names of the classes.
    """

    measured: DenseReport
    labels: list[str]

    @property
    def num_images(self) -> int:
        """Pictures that count."""
        return self.measured.num_images

    @property
    def num_broken(self) -> int:
        """Pictures that could not be read, which do not count."""
        return self.measured.num_broken

    @property
    def by_class(self) -> dict[str, dict[str, float]]:
        """Numbers of each class, by its name and theirs."""
        metrics = self.measured.metrics
        return {
            label: {kind: metrics[name] for kind, name in _names_of_class(label).items() if name in metrics}
            for label in self.labels
        }

    @property
    def overall(self) -> dict[str, float]:
        """Numbers that are about all classes."""
        of_classes = {name for label in self.labels for name in _names_of_class(label).values()}
        return {name: value for name, value in self.measured.metrics.items() if name not in of_classes}

    def rows(self) -> dict[str, str]:
        """Return the lines of a table, by their title."""
        rows = {"images": f"{self.num_images}"}
        rows |= {name.replace("_", " "): f"{value:.4f}" for name, value in self.overall.items()}
        rows |= {"images/s": f"{self.num_images / self.measured.seconds:.1f}"}
        return rows | ({"  broken, not counted": str(self.num_broken)} if self.num_broken else {})

    def class_table(self, class_names: list[str]) -> str:
        """Return the numbers of each class, a line for each."""
        kinds = list(self.by_class[class_names[0]])
        width = max(len("class"), *map(len, class_names))
        lines = [f"{'class':<{width}}" + "".join(f"{kind:>8}" for kind in kinds)]
        lines += [
            f"{name:<{width}}" + "".join(f"{self.by_class[name][kind]:>8.4f}" for kind in kinds)
            for name in class_names
        ]
        return "\n".join(lines)

    def to_json(self, class_names: list[str]) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite become `None`."""
        of_classes = self.measured.metrics.keys() - self.overall.keys()
        content = {name: value for name, value in self.measured.to_json().items() if name not in of_classes}
        return content | {"classes": [{"name": name, **_finite(self.by_class[name])} for name in class_names]}


@dataclass(frozen=True)
class TaskEvaluation:
    """Result of an evaluation, and what it is about; the attributes are those of `ModelEvaluation`."""

    report: TaskReport
    class_names: list[str]
    facts: dict[str, str]
    settings: dict[str, Any]
    bad_images: list[BadImage]


def evaluate_task_model(
    opened: TaskModel,
    data: str | os.PathLike[str] | DataOptions,
    *,
    split: str | None = None,
    batch_size: int = 8,
    precision: Precision = "fp32",
    num_workers: int | None = None,
    sheet: Path | None = None,
) -> TaskEvaluation:
    """Evaluate a model on annotated pictures.

    Every process that `torchrun` or `accelerate launch` has started calls this, and gets the same result.

    Args:
        opened: The model and its task, which reads the annotations.
        data: Folder in one of the layouts of the task, or whatever else `svit-hf train` takes as `data.path`; or
            options that say how it is read.
        split: Name of the split; by default validation, or test if there is none.
        batch_size: Pictures per batch of each process.
        precision: Precision of the forward pass: `fp32`, `bf16` or `fp16`.
        num_workers: Processes that read and decode; by default those of the options, or one per CPU, 8 at most.
        sheet: PNG file to write: the first pictures with their annotations, and below them what the model says.

    Raises:
        DataError: If an annotation is not possible; the message names file and row.
        EvaluationError: If no picture could be read, or one was not counted exactly once.
    """
    require_positive(batch_size=batch_size)
    state, task = processes(), opened.task
    options = data if isinstance(data, DataOptions) else DataOptions(path=os.fspath(data))
    if split is not None:
        options = replace(options, eval_split=split)
    with state.main_process_first():
        source = find_split(type(task), options, "eval").source(task)
    progress = Progress(-(-source.num_samples // state.num_processes), "pictures", is_shown=state.is_main_process)
    loader = _WatchedLoader(
        source,
        task.evaluation_example,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=workers_per_rank(options) if num_workers is None else num_workers,
    )
    with progress:
        loader.progress = progress
        ranks = Ranks(state.device, AUTOCAST_DTYPES[precision], gather=lambda value: gather_object([value]))
        measured = task.measure(opened.model, loader, ranks)
    if sheet is not None and state.is_main_process:
        task.write_contact_sheet(opened.model, loader, sheet)
    height, width = task.size
    count = f", {state.num_processes} processes" if state.num_processes > 1 else ""
    facts = {
        "data": f"{options.path}, {source.num_samples} pictures of the split {source.split}",
        "task": f"{task.name.replace('_', ' ')} by {task.head.name}, {len(task.labels)} classes",
        "images": f"{height} x {width} pixels",
        "computed": f"{precision} on {state.device.type}{count}",
    }
    settings = {
        "data": options.path,
        "split": source.split,
        "task": task.name,
        "head": task.head.name,
        "image_shape": [3, height, width],
        "precision": precision,
        "batch_size": batch_size,
        "num_processes": state.num_processes,
    }
    return TaskEvaluation(TaskReport(measured, task.labels), task.labels, facts, settings, loader.bad_images)


class _WatchedLoader(EvaluationLoader):
    """A loader that shows how far it is, and remembers the first broken pictures of this process."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.progress: Progress | None = None
        self.bad_images: list[BadImage] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.bad_images += batch["bad_images"][: NUM_LISTED - len(self.bad_images)]
            yield batch
            if self.progress is not None:
                self.progress.advance(len(batch["sample_ids"]) + len(batch["bad_images"]))


def _names_of_class(label: str) -> dict[str, str]:
    return {"iou": f"iou_{label}", "dice": f"dice_{label}", "map": map_of_class(label)}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
