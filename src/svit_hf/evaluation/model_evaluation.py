# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on labelled images, from wherever both are."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import reduce

from svit_hf.data.decoding import BadImage, BadImageTally
from svit_hf.data.loading import Batch, EvaluationLoader, workers_per_rank
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import ImageSource
from svit_hf.errors import SViTError
from svit_hf.evaluation.classification import evaluate_batches
from svit_hf.evaluation.classifier import AUTOCAST_DTYPES, Model, open_classifier, processes
from svit_hf.evaluation.label_maps import columns_by_name, map_labels
from svit_hf.evaluation.multi_label import MultiLabelReport, evaluate_multi_label
from svit_hf.evaluation.options import Precision, require_positive
from svit_hf.evaluation.report import ClassificationReport
from svit_hf.progress import Progress
from svit_hf.urls import without_credentials


@dataclass(frozen=True)
class ModelEvaluation:
    """Result of an evaluation, and what it is about.

    Attributes:
        report: The numbers.
        class_names: Names of the model's classes.
        facts: What was evaluated, in lines by their title.
        settings: The same as plain values, for a JSON file.
        bad_images: Of the images that could not be read, the first ones that this process met.
    """

    report: ClassificationReport | MultiLabelReport
    class_names: list[str]
    facts: dict[str, str]
    settings: dict[str, Any]
    bad_images: list[BadImage]

    def text(self) -> str:
        """Return everything for a reader."""
        facts = [f"{title:<24}{value}" for title, value in self.facts.items()]
        return "\n".join([*facts, "", self.report.table(), "", self.report.class_table(self.class_names)])


def evaluate_model(  # noqa: PLR0913 - what is evaluated, on what, and how
    model: Model,
    data: str | os.PathLike[str] | DataOptions | ImageSource,
    *,
    split: str | None = None,
    image_processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    batch_size: int = 64,
    precision: Precision = "fp32",
    flip: bool = False,
    label_map: str | os.PathLike[str] | None = None,
    mask: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
) -> ModelEvaluation:
    """Evaluate a classifier on labelled images; each counts once, over any number of processes.

    Every process that `torchrun` or `accelerate launch` has started calls this, and gets the same result. Labels of
    the data and classes of the model are matched by name.

    Args:
        model: A folder, an id of the Hub, the folder of a training run, whose finished model it is then, or a
            classifier in memory with its `image_processor`.
        data: Where the images are: a path as in `DataOptions`, the options themselves, or an opened source.
        split: The split of the data; by default the first of validation, valid, val and test that there is.
        image_processor: What prepares the images; by default that of the model's folder.
        image_size: Edge, or height and width, of what the model sees, in pixels; its own by default.
        crop_pct: Share of the resized picture's edge that the crop keeps; that of the model by default.
        batch_size: Images per batch of each process.
        precision: Precision of the forward pass: `fp32`, `bf16` or `fp16`.
        flip: Average the probabilities of each image and of its mirror image.
        label_map: A file that says what the labels mean, see `svit_hf.evaluation.label_maps.map_labels`.
        mask: A file with the classes among which the model chooses.
        num_workers: Processes that read and decode; by default those of the options, or one per CPU, 8 at most.

    Raises:
        SViTError: If an argument is impossible, or names of labels are not those of the model.
        EvaluationError: If images were not counted exactly.

    Example:
        >>> from svit_hf.evaluation import evaluate_model
        >>> evaluation = evaluate_model("runs/pets", "pictures", split="test")  # doctest: +SKIP
        >>> evaluation.report.accuracy  # doctest: +SKIP
        0.931
    """
    require_positive(batch_size=batch_size)
    state = processes()
    source = open_labelled(data, split)
    classifier = open_classifier(
        model,
        state.device,
        image_processor=image_processor,
        image_size=image_size,
        crop_pct=crop_pct,
        precision=precision,
    )
    if source.is_multi_label:
        for name, file in (("label_map", label_map), ("mask", mask)):
            if file is not None:
                raise SViTError(f"`{name}` is {str(file)!r}; with `multi_label`, labels are matched by name alone.")
        columns = columns_by_name(source.label_names, classifier.class_names)
        meaning = f"{len(columns)} labels, any number per image"
    else:
        labels = map_labels(
            source.label_names,
            classifier.class_names,
            label_map=None if label_map is None else Path(label_map),
            mask=None if mask is None else Path(mask),
            image_names=source.image_names,
        )
        meaning = labels.description
    options = data if isinstance(data, DataOptions) else DataOptions()
    loader = EvaluationLoader(
        source,
        classifier.preprocessing,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=workers_per_rank(options) if num_workers is None else num_workers,
    )
    tally = BadImageTally(options.max_bad_share)
    # shares differ by one batch at most
    total = -(-loader.num_samples // state.num_processes)
    with Progress(total, "images", is_shown=state.is_main_process) as progress:

        def noted(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                tally.note(batch["bad_images"])
                yield batch
                progress.advance(len(batch["labels"]) + len(batch["bad_images"]))

        common: dict[str, Any] = {
            "num_expected": loader.num_samples,
            "reduce": partial(reduce, reduction="sum"),
            "device": state.device,
            "autocast_dtype": AUTOCAST_DTYPES[precision],
            "flip": flip,
            "forward": classifier.forward,
            "num_classes": len(classifier.class_names),
        }
        report: ClassificationReport | MultiLabelReport
        if source.is_multi_label:
            report = evaluate_multi_label(classifier.model, noted(loader), columns=columns, **common)
        else:
            report = evaluate_batches(classifier.model, noted(loader), label_map=labels, **common)
    description = without_credentials(source.description)
    height, width = classifier.preprocessing.shape[1:]
    crop = "" if crop_pct is None else f", crop share {crop_pct}"
    mirrored = ", averaged with their mirror images" if flip else ""
    count = f", {state.num_processes} processes" if state.num_processes > 1 else ""
    facts = {
        "data": description,
        "classes": meaning,
        "images": f"{height} x {width} pixels{crop}{mirrored}",
        "computed": f"{precision} on {state.device.type}{count}",
    }
    settings = {
        "data": description,
        "label_map": meaning,
        "image_shape": list(classifier.preprocessing.shape),
        "image_processor": type(classifier.preprocessing.processor).__name__,
        "crop_pct": crop_pct,
        "flip": flip,
        "precision": precision,
        "batch_size": batch_size,
        "num_processes": state.num_processes,
    }
    return ModelEvaluation(report, classifier.class_names, facts, settings, tally.listed)


def open_labelled(data: str | os.PathLike[str] | DataOptions | ImageSource, split: str | None = None) -> ImageSource:
    """Open the images to evaluate on, on one process first: what is downloaded or counted is there for the others.

    Raises:
        SViTError: If something is not there, or not clear.
    """
    if isinstance(data, ImageSource):
        return data
    options = data if isinstance(data, DataOptions) else DataOptions(path=os.fspath(data))
    if split is not None:
        options = replace(options, eval_split=split)
    with processes().main_process_first():
        return open_source(options, "eval")
