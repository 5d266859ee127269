# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model on labelled images, from wherever both are."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, reduce

from svit_hf.data.decoding import NUM_LISTED, BadImage
from svit_hf.data.loading import Batch, EvaluationLoader, Transform, workers_per_rank
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import ImageSource
from svit_hf.errors import SViTError
from svit_hf.evaluation.classification import evaluate_batches
from svit_hf.evaluation.classifier import AUTOCAST_DTYPES, Model, open_classifier, processes
from svit_hf.evaluation.label_maps import LabelMap, columns_by_name, map_labels
from svit_hf.evaluation.multi_label import MultiLabelReport, evaluate_multi_label
from svit_hf.evaluation.options import Precision, data_options, require_positive
from svit_hf.evaluation.outputs import Ranks
from svit_hf.evaluation.report import ClassificationReport, Report
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

    report: Report
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
    source = open_labelled(data, split)
    classifier = open_classifier(
        model,
        processes().device,
        image_processor=image_processor,
        image_size=image_size,
        crop_pct=crop_pct,
        precision=precision,
    )
    names, shape = classifier.class_names, classifier.preprocessing.shape
    meaning: LabelMap | torch.Tensor
    if source.is_multi_label:
        for name, file in (("label_map", label_map), ("mask", mask)):
            if file is not None:
                raise SViTError(f"`{name}` is {str(file)!r}; with `multi_label`, labels are matched by name alone.")
        meaning = columns_by_name(source.label_names, names)
        in_words = f"{len(meaning)} labels, any number per image"
    else:
        meaning = map_labels(
            source.label_names,
            names,
            label_map=None if label_map is None else Path(label_map),
            mask=None if mask is None else Path(mask),
            image_names=source.image_names,
        )
        in_words = meaning.description
    description = without_credentials(source.description)
    crop = "" if crop_pct is None else f", crop share {crop_pct}"
    mirrored = ", averaged with their mirror images" if flip else ""
    options = data if isinstance(data, DataOptions) else DataOptions()
    return evaluate_source(
        lambda loader, ranks: measure_classifier(
            classifier.model, loader, ranks, len(names), meaning, flip=flip, forward=classifier.forward
        ),
        source,
        classifier.preprocessing,
        class_names=names,
        facts={
            "data": description,
            "classes": in_words,
            "images": f"{shape[1]} x {shape[2]} pixels{crop}{mirrored}",
        },
        settings={
            "data": description,
            "label_map": in_words,
            "image_shape": list(shape),
            "image_processor": type(classifier.preprocessing.processor).__name__,
            "crop_pct": crop_pct,
            "flip": flip,
        },
        batch_size=batch_size,
        precision=precision,
        num_workers=workers_per_rank(options) if num_workers is None else num_workers,
    )


def measure_classifier(
    model: torch.nn.Module,
    loader: EvaluationLoader,
    ranks: Ranks,
    num_classes: int,
    meaning: Any = None,
    **options: Any,
) -> ClassificationReport | MultiLabelReport:
    """Count what a classifier says of every image, over all processes.

    `meaning` is what labels mean to the model, as `label_maps.py` has it; if `None`, they are its classes. `options`
    are more arguments of `evaluate_batches`.
    """
    options |= {"num_expected": loader.num_samples, "num_classes": num_classes}
    if loader.maker.source.is_multi_label:
        return evaluate_multi_label(model, loader, ranks, columns=meaning, **options)
    of_ranks = {name: getattr(ranks, name) for name in ("reduce", "device", "autocast_dtype", "should_stop")}
    return evaluate_batches(model, loader, label_map=meaning, **of_ranks, **options)


def evaluate_source(  # noqa: PLR0913 - what is evaluated, how, and what there is to say of it
    measure: Callable[[EvaluationLoader, Ranks], Report],
    source: ImageSource,
    prepare: Transform,
    *,
    class_names: list[str],
    facts: dict[str, str],
    settings: dict[str, Any],
    batch_size: int,
    precision: Precision,
    num_workers: int,
    unit: str = "images",
) -> ModelEvaluation:
    """Evaluate a model of any task on an opened source, of which each process has a share, and show how far it is."""
    state = processes()
    add_up, gather = partial(reduce, reduction="sum"), lambda value: gather_object([value])
    ranks = Ranks(state.device, AUTOCAST_DTYPES[precision], add_up, gather)
    # shares differ by one batch at most
    total = -(-source.num_samples // state.num_processes)
    with Progress(total, unit, is_shown=state.is_main_process) as progress:
        loader = _WatchedLoader(
            progress,
            source,
            prepare,
            batch_size=batch_size,
            rank=state.process_index,
            world_size=state.num_processes,
            num_workers=num_workers,
        )
        report = measure(loader, ranks)
    count = f", {state.num_processes} processes" if state.num_processes > 1 else ""
    facts |= {"computed": f"{precision} on {state.device.type}{count}"}
    settings |= {"precision": precision, "batch_size": batch_size, "num_processes": state.num_processes}
    return ModelEvaluation(report, class_names, facts, settings, loader.bad_images)


class _WatchedLoader(EvaluationLoader):
    """A loader that shows how far it is, and remembers the first broken images of this process."""

    def __init__(self, progress: Progress, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.progress = progress
        self.bad_images: list[BadImage] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self.bad_images += batch["bad_images"][: NUM_LISTED - len(self.bad_images)]
            yield batch
            self.progress.advance(len(batch["sample_ids"]) + len(batch["bad_images"]))


def open_labelled(data: str | os.PathLike[str] | DataOptions | ImageSource, split: str | None = None) -> ImageSource:
    """Open the images to evaluate on, on one process first: what is downloaded or counted is there for the others.

    Raises:
        SViTError: If something is not there, or not clear.
    """
    if isinstance(data, ImageSource):
        return data
    with processes().main_process_first():
        return open_source(data_options(data, split), "eval")
