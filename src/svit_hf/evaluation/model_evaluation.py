# SPDX-License-Identifier: Apache-2.0
"""From the arguments of `svit-hf evaluate` to its tables and its file."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.utils import reduce

from svit_hf.data.decoding import BadImageTally
from svit_hf.data.loading import Batch, EvaluationLoader, workers_per_rank
from svit_hf.data.opening import open_source
from svit_hf.data.sources import ImageSource, IndexedSource
from svit_hf.evaluation.checkpoints import find_weights
from svit_hf.evaluation.classification import evaluate_batches
from svit_hf.evaluation.command import EvaluateCommand
from svit_hf.evaluation.label_maps import LabelMap, map_labels
from svit_hf.evaluation.report import ClassificationReport
from svit_hf.evaluation.session import (
    AUTOCAST_DTYPES,
    Classifier,
    open_classifier,
    processes,
    with_progress,
)
from svit_hf.files import require_writable, write_text
from svit_hf.provenance import provenance


def evaluate_model(command: EvaluateCommand) -> dict[str, ClassificationReport]:
    """Evaluate every set of weights of a model; rank 0 prints and writes what came out.

    Returns:
        Reports by the name of the weights: `model`, or `raw` and `ema`.

    Raises:
        SViTError: If an argument is impossible.
        DataError: After all was printed and written, if too many images were broken.
        EvaluationError: If images were not counted exactly.
    """
    state = processes()
    weights = find_weights(command.model, command.weights)
    if command.output is not None:
        require_writable(command.output, "output")
    options = command.data if command.split is None else dataclasses.replace(command.data, eval_split=command.split)
    # what is downloaded or counted is there for the others then
    with state.main_process_first():
        source = open_source(options, "eval")
    reports = {}
    for name, location in weights.items():
        classifier = open_classifier(location, command, state.device)
        label_map = map_labels(
            source.label_names,
            classifier.class_names,
            label_map=command.label_map,
            mask=command.mask,
            image_names=partial(_image_names, source),
        )
        tally = BadImageTally(options.max_bad_share)
        reports[name] = _evaluate(classifier, source, label_map, command, state, tally)
    if state.is_main_process:
        facts = _facts(command, source, classifier, label_map, state)
        print(_text(facts, reports, classifier.class_names))  # noqa: T201 - a program's result
        if command.output is not None:
            content = _content(command, facts, weights, reports, classifier, state)
            write_text(command.output, json.dumps(content, indent=2, allow_nan=False) + "\n")
    tally.add(source.num_samples, reports[name].num_broken)
    for bad in tally.listed:
        sys.stderr.write(f"broken: {bad.source}, row {bad.row}: {bad.reason}\n")
    return reports


def _evaluate(
    classifier: Classifier,
    source: ImageSource,
    label_map: LabelMap,
    command: EvaluateCommand,
    state: PartialState,
    tally: BadImageTally,
) -> ClassificationReport:
    loader = EvaluationLoader(
        source,
        classifier.preprocessing,
        batch_size=command.batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=workers_per_rank(command.data),
    )

    def noted(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            tally.note(batch["bad_images"])
            yield batch

    # shares differ by one image at most
    total = -(-loader.num_samples // state.num_processes)
    batches = with_progress(
        loader, lambda batch: len(batch["labels"]) + len(batch["bad_images"]), total, state.is_main_process
    )
    return evaluate_batches(
        classifier.model,
        noted(batches),
        num_expected=loader.num_samples,
        reduce=partial(reduce, reduction="sum"),
        device=state.device,
        autocast_dtype=AUTOCAST_DTYPES[command.precision],
        flip=command.flip,
        label_map=label_map,
        forward=classifier.forward,
        num_classes=len(classifier.class_names),
    )


def _image_names(source: ImageSource) -> list[str]:
    """Return the file names of the images, empty where they are not known."""
    if isinstance(source, IndexedSource):
        images = source.dataset.with_format("arrow")[:][source.columns[0]]
        if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
            return [name or "" for name in pc.struct_field(images, "path").to_pylist()]
    return [""] * source.num_samples


def _facts(
    command: EvaluateCommand, source: ImageSource, classifier: Classifier, label_map: LabelMap, state: PartialState
) -> dict[str, str]:
    """Return what the numbers are about, in lines."""
    height, width = classifier.preprocessing.shape[1:]
    crop = "" if command.crop_pct is None else f", crop share {command.crop_pct}"
    flip = ", averaged with their mirror images" if command.flip else ""
    processes = "" if state.num_processes == 1 else f", {state.num_processes} processes"
    return {
        "model": command.model,
        "data": source.description,
        "classes": label_map.description,
        "images": f"{height} x {width} pixels{crop}{flip}",
        "computed": f"{command.precision} on {state.device.type}{processes}",
    }


def _text(facts: dict[str, str], reports: dict[str, ClassificationReport], class_names: Sequence[str]) -> str:
    lines = [f"{title:<24}{value}" for title, value in facts.items()] + [""]
    columns = [{"": name} | report.rows() for name, report in reports.items()]
    width = max(len(value) for column in columns for value in column.values()) + 2
    for title in dict.fromkeys(title for column in columns for title in column):
        values = "".join(f"{column.get(title, '0'):<{width}}" for column in columns)
        lines.append(f"{title:<24}{values}".rstrip())
    for name, report in reports.items():
        lines += ["", f"{name}, by class", report.class_table(class_names)]
    return "\n".join(lines)


def _content(
    command: EvaluateCommand,
    facts: dict[str, str],
    weights: dict[str, str],
    reports: dict[str, ClassificationReport],
    classifier: Classifier,
    state: PartialState,
) -> dict[str, Any]:
    """Return what the JSON file holds."""
    return {
        **provenance(state.device),
        "num_processes": state.num_processes,
        "model": command.model,
        "data": facts["data"],
        "label_map": facts["classes"],
        "image_shape": list(classifier.preprocessing.shape),
        "image_processor": type(classifier.preprocessing.processor).__name__,
        "crop_pct": command.crop_pct,
        "flip": command.flip,
        "precision": command.precision,
        "batch_size": command.batch_size,
        "results": {
            name: {"location": weights[name], **report.to_json(classifier.class_names)}
            for name, report in reports.items()
        },
    }
