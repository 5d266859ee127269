# SPDX-License-Identifier: Apache-2.0
"""Evaluate models for segmentation and detection: every picture counts once, over any number of processes."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from svit_hf.data.decoding import DecodingError
from svit_hf.data.loading import EvaluationLoader, workers_per_rank
from svit_hf.data.options import DataOptions
from svit_hf.errors import EvaluationError
from svit_hf.evaluation.classifier import processes
from svit_hf.evaluation.model_evaluation import ModelEvaluation, evaluate_source
from svit_hf.evaluation.options import Precision, data_options, require_positive
from svit_hf.evaluation.outputs import EvaluationInterruptedError, Ranks, evaluating, outputs_of
from svit_hf.evaluation.report import Report, finite
from svit_hf.tasks.average_precision import map_of_class
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.saved_models import TaskModel
from svit_hf.tasks.task import DenseTask, Sample


# pictures of a contact sheet, and their edge in pixels
NUM_DRAWN, TILE = 4, 256


@dataclass(frozen=True)
class DenseReport(Report):
    """Numbers of an evaluation, over all processes.

    Attributes:
        metrics: The numbers, by name.
        labels: Names of the classes.
        log_fields: Names of the most important ones, the best first, and "num_images".
        num_images: Pictures that count.
        num_broken: Pictures that could not be read, which do not count.
        seconds: Duration.
    """

    metrics: dict[str, float]
    labels: list[str]
    log_fields: tuple[str, ...]
    num_images: int
    num_broken: int
    seconds: float

    num_left_out = num_not_finite = 0

    @property
    def by_class(self) -> dict[str, dict[str, float]]:
        """Numbers of each class, by its name and theirs."""
        return {
            label: {kind: self.metrics[name] for kind, name in _names_of_class(label).items() if name in self.metrics}
            for label in self.labels
        }

    @property
    def overall(self) -> dict[str, float]:
        """Numbers that are about all classes."""
        of_classes = {name for label in self.labels for name in _names_of_class(label).values()}
        return {name: value for name, value in self.metrics.items() if name not in of_classes}

    def line(self) -> str:
        """Return the most important numbers in a line."""
        return "  ".join(f"{name.replace('_', ' ')} {self.metrics[name]:7.2%}" for name in self.log_fields[:-1])

    def measures(self) -> dict[str, str]:
        """Return what was measured, by its title in a table."""
        return {name.replace("_", " "): f"{value:.4f}" for name, value in self.overall.items()}

    def class_table(self, class_names: Sequence[str] | None = None) -> str:
        """Return the numbers of each class, a line for each."""
        names = self.labels if class_names is None else class_names
        kinds = list(self.by_class[names[0]])
        width = max(len("class"), *map(len, names))
        lines = [f"{'class':<{width}}" + "".join(f"{kind:>8}" for kind in kinds)]
        lines += [
            f"{name:<{width}}" + "".join(f"{self.by_class[name][kind]:>8.4f}" for kind in kinds) for name in names
        ]
        return "\n".join(lines)

    def to_json(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return everything as plain values, see `Report`; without names, those of classes have theirs as a suffix."""
        content = {
            "num_images": self.num_images,
            "num_broken": self.num_broken,
            **finite(self.metrics if class_names is None else self.overall),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }
        if class_names is None:
            return content
        return content | {"classes": [{"name": name, **finite(self.by_class[name])} for name in class_names]}


def evaluate_task_model(
    opened: TaskModel,
    data: str | os.PathLike[str] | DataOptions,
    *,
    split: str | None = None,
    batch_size: int = 8,
    precision: Precision = "fp32",
    num_workers: int | None = None,
    sheet: Path | None = None,
) -> ModelEvaluation:
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
    state, task, model = processes(), opened.task, opened.model
    options = data_options(data, split)
    with state.main_process_first():
        source = find_split(type(task), options, "eval").source(task)

    def measure_and_draw(loader: EvaluationLoader, ranks: Ranks) -> DenseReport:
        report = task.measure(model, loader, ranks)
        if sheet is not None and state.is_main_process:
            task.write_contact_sheet(model, loader, sheet)
        return report

    height, width = task.size
    return evaluate_source(
        measure_and_draw,
        source,
        task.evaluation_example,
        class_names=task.labels,
        facts={
            "data": f"{options.path}, {source.num_samples} pictures of the split {source.split}",
            "task": f"{task.name.replace('_', ' ')} by {task.head.name}, {len(task.labels)} classes",
            "images": f"{height} x {width} pixels",
        },
        settings={
            "data": options.path,
            "split": source.split,
            "task": task.name,
            "head": task.head.name,
            "image_shape": [3, height, width],
        },
        batch_size=batch_size,
        precision=precision,
        num_workers=workers_per_rank(options) if num_workers is None else num_workers,
        unit="pictures",
    )


def measure(task: DenseTask, model: torch.nn.Module, loader: EvaluationLoader, ranks: Ranks) -> DenseReport:
    """Evaluate a model on this process's share of the pictures, and report on all of them.

    Raises:
        EvaluationError: If pictures were not counted exactly once, or none could be read.
        EvaluationInterruptedError: If `ranks.should_stop` said yes on some process.
    """
    started = time.perf_counter()
    metric = task.metric()
    counted: list[int] = []
    num_broken, is_interrupted = 0, False
    with evaluating(model), torch.no_grad():
        for batch, outputs in outputs_of(model, loader, ranks):
            num_broken += len(batch.get("bad_images", ()))
            is_interrupted = outputs is None
            if not outputs:
                continue
            indices, truths = batch["sample_ids"].tolist(), batch["truths"]
            predictions = task.predictions(outputs[0], [truth.size for truth in truths])
            for index, prediction, truth in zip(indices, predictions, truths, strict=True):
                metric.update(index, prediction, truth)
            counted += indices
    shares = ranks.gather((is_interrupted, counted, num_broken, metric.state()))
    if any(share[0] for share in shares):
        raise EvaluationInterruptedError("the evaluation was interrupted")
    everything = [index for share in shares for index in share[1]]
    num_broken = sum(share[2] for share in shares)
    if not everything:
        raise EvaluationError(f"none of the {loader.num_samples} images could be read.")
    if len({*everything}) != len(everything) or len(everything) + num_broken != loader.num_samples:
        raise EvaluationError(
            f"{len(everything)} images were counted, and {loader.num_samples - num_broken} were expected: some were "
            "left out or counted twice."
        )
    total = task.metric()
    for share in shares:
        total.merge(share[3])
    fields, seconds = (*metric.log_fields, "num_images"), time.perf_counter() - started
    return DenseReport(total.compute(), task.labels, fields, len(everything), num_broken, seconds)


def first_samples(loader: EvaluationLoader) -> list[Sample]:
    """Return the first pictures of a split that are whole, as they were read."""
    source = loader.maker.source
    samples: list[Sample] = []
    for row in source.rows_at(range(source.num_samples)):
        if len(samples) == NUM_DRAWN:
            break
        # the evaluation has counted those that are broken
        with suppress(DecodingError):
            samples.append(source.decode(row))
    return samples


def contact_sheet(task: DenseTask, model: torch.nn.Module, samples: Sequence[Sample]) -> Image.Image:
    """Draw pictures beside each other: above what is annotated, below what the model says."""
    with evaluating(model):
        predictions = task.predict(model, [sample.picture for sample in samples])
    rows = [[task.draw(sample.picture, sample.target) for sample in samples]]
    rows.append([task.draw(sample.picture, said) for sample, said in zip(samples, predictions, strict=True)])
    sheet = Image.new("RGB", (TILE * len(samples), TILE * len(rows)))
    for place, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((TILE, TILE)), (column * TILE, place * TILE))
    return sheet


def _names_of_class(label: str) -> dict[str, str]:
    return {"iou": f"iou_{label}", "dice": f"dice_{label}", "map": map_of_class(label)}
