# SPDX-License-Identifier: Apache-2.0
"""What a model says of a whole split, counted by all processes together, each picture once."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from svit_hf.data.decoding import DecodingError
from svit_hf.data.loading import EvaluationLoader
from svit_hf.errors import EvaluationError
from svit_hf.evaluation.classification import EvaluationInterruptedError, evaluating
from svit_hf.tasks.task import Ranks


if TYPE_CHECKING:
    from svit_hf.tasks.task import DenseTask, Sample

# pictures of a contact sheet, and their edge in pixels
NUM_DRAWN, TILE = 4, 256


@dataclass(frozen=True)
class DenseReport:
    """Numbers of an evaluation, over all processes.

    Attributes:
        metrics: The numbers, by name.
        log_fields: Names of the most important ones, the best first, and "num_images".
        num_images: Pictures that count.
        num_broken: Pictures that could not be read, which do not count.
        seconds: Duration.
    """

    metrics: dict[str, float]
    log_fields: tuple[str, ...]
    num_images: int
    num_broken: int
    seconds: float

    def line(self) -> str:
        """Return the most important numbers in a line."""
        return "  ".join(f"{name.replace('_', ' ')} {self.metrics[name]:7.2%}" for name in self.log_fields[:-1])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; numbers that are not finite become `None`."""
        return {
            "num_images": self.num_images,
            "num_broken": self.num_broken,
            **{name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "seconds": self.seconds,
            "images_per_second": self.num_images / self.seconds,
        }


def first_samples(loader: EvaluationLoader) -> list["Sample"]:
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


def contact_sheet(task: "DenseTask", model: torch.nn.Module, samples: Sequence["Sample"]) -> Image.Image:
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


def measure(task: "DenseTask", model: torch.nn.Module, loader: EvaluationLoader, ranks: Ranks) -> DenseReport:
    """Evaluate a model on this process's share of the pictures, and report on all of them.

    Raises:
        EvaluationError: If pictures were not counted exactly once, or none could be read.
        EvaluationInterruptedError: If `ranks.should_stop` said yes on some process.
    """
    started = time.perf_counter()
    device, metric = torch.device(ranks.device), task.metric()
    counted: list[int] = []
    num_broken, is_interrupted = 0, False
    with evaluating(model), torch.no_grad():
        for batch in loader:
            if ranks.should_stop():
                is_interrupted = True
                break
            num_broken += len(batch["bad_images"])
            indices, truths = batch["sample_ids"].tolist(), batch["truths"]
            if not truths:
                continue
            with torch.autocast(device.type, dtype=ranks.autocast_dtype, enabled=ranks.autocast_dtype is not None):
                outputs = model(pixel_values=batch["pixel_values"].to(device, non_blocking=True))
            predictions = task.predictions(outputs, [truth.size for truth in truths])
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
    fields = (*metric.log_fields, "num_images")
    return DenseReport(total.compute(), fields, len(everything), num_broken, time.perf_counter() - started)
