# SPDX-License-Identifier: Apache-2.0
"""Predict masks or boxes of pictures, and write them: parquet files, COCO's JSON, masks and overlays as PNG."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from svit_hf.data.loading import workers_per_rank
from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.evaluation.classifier import AUTOCAST_DTYPES, processes
from svit_hf.evaluation.options import Precision, require_positive
from svit_hf.evaluation.outputs import compute
from svit_hf.evaluation.parts import Predictions, header, predict_parts
from svit_hf.evaluation.pictures import Images, open_images
from svit_hf.files import whole_file
from svit_hf.tasks.average_precision import MAX_DETECTIONS
from svit_hf.tasks.coco import encode_run_lengths
from svit_hf.tasks.objects import Objects, boxes_of_masks
from svit_hf.tasks.pictures import View
from svit_hf.tasks.saved_models import OUTPUTS, TaskModel
from svit_hf.tasks.task import DenseTask


COCO_FILE = "coco.json"
MASKS, OVERLAYS = "masks", "overlays"
COLUMNS = {
    "height": pa.int32(),
    "width": pa.int32(),
    "objects": pa.list_(
        pa.struct(
            {
                "label": pa.string(),
                "label_id": pa.int32(),
                "score": pa.float64(),
                "bbox": pa.list_(pa.float64()),
                "area": pa.float64(),
                "segmentation": pa.string(),
            }
        )
    ),
}
# of a picture's file name in the names of its masks; a file system allows some 255 bytes
LONGEST_NAME = 50


@dataclass(frozen=True)
class DensePredictor:
    """What is done with the pictures of a batch, for `svit_hf.evaluation.parts.predict_parts`.

    Attributes:
        min_score: Objects with a lower score are left out; pixels have none.
        folder: Gets masks, and overlays; nothing is drawn without it.
    """

    task: DenseTask
    model: Any
    precision: Precision
    min_score: float
    folder: Path | None
    has_overlays: bool

    def prepare(self, picture: Image.Image) -> tuple[torch.Tensor, tuple[tuple[int, int], Image.Image | None]]:
        """Return pixel values, the picture's height and width, and the picture itself if it is drawn on."""
        size = (picture.height, picture.width)
        return View.whole(size, self.task.size).of_picture(picture), (size, picture if self.has_overlays else None)

    @torch.no_grad()
    def predict(
        self, pixel_values: torch.Tensor, extras: Sequence[Any], rows: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the columns of pictures, whose masks and overlays are written meanwhile."""
        outputs = compute(self.model, pixel_values.to(self.model.device), AUTOCAST_DTYPES[self.precision])
        predictions = self.task.predictions(outputs, [size for size, _ in extras])
        # the processors of Transformers leave out what is not finite, as if nothing were there
        said = [getattr(outputs, name).flatten(1) for name in OUTPUTS if getattr(outputs, name, None) is not None]
        is_finite = torch.cat(said, dim=1).isfinite().all(dim=1).tolist()
        return [
            self._columns(prediction, size, picture, row)
            if is_good
            else {"error": "the output of the model is not finite"}
            for prediction, (size, picture), row, is_good in zip(predictions, extras, rows, is_finite, strict=True)
        ]

    def _columns(
        self, prediction: Any, size: tuple[int, int], picture: Image.Image | None, row: dict[str, Any]
    ) -> dict[str, Any]:
        objects = _classes(prediction) if isinstance(prediction, np.ndarray) else _best(prediction, self.min_score)
        if self.folder is not None:
            name = file_name(row)
            if objects.masks is not None:
                is_semantic = isinstance(prediction, np.ndarray)
                _write(_image(prediction if is_semantic else _numbered(objects, size)), self.folder / MASKS / name)
            if picture is not None:
                drawn = prediction if isinstance(prediction, np.ndarray) else objects
                _write(self.task.draw(picture, drawn), self.folder / OVERLAYS / name)
        entries = [self._entry(objects, place) for place in range(len(objects))]
        return {"height": size[0], "width": size[1], "objects": entries}

    def _entry(self, objects: Objects, place: int) -> dict[str, Any]:
        left, top, right, bottom = (float(edge) for edge in objects.boxes[place])
        mask = None if objects.masks is None else objects.masks[place]
        return {
            "label": self.task.labels[objects.labels[place]],
            "label_id": int(objects.labels[place]),
            "score": None if objects.scores is None else float(objects.scores[place]),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top) if mask is None else float(mask.sum()),
            "segmentation": None if mask is None else encode_run_lengths(mask)["counts"],
        }


def predict_objects(  # noqa: PLR0913 - what is predicted, by what, how, and where it goes
    opened: TaskModel,
    images: Images,
    *,
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    batch_size: int = 8,
    precision: Precision = "fp32",
    min_score: float = 0.5,
    overlays: bool = False,
    part_size: int = 4096,
    num_workers: int | None = None,
) -> Predictions:
    """Predict masks or boxes of pictures.

    As in `svit_hf.evaluation.predict_images`, processes share the pictures, and what is there is not done again.

    Args:
        opened: The model, see `svit_hf.tasks.saved_models.open_task_model`.
        images: Picture files, folders, globs, or pictures in memory, one or several; or one data set.
        output: Folder for parquet files, `coco.json`, `masks/`, and `overlays/`; without it the predictions stay in
            memory, and one process does all.
        split: The split of a data set.
        batch_size: Pictures per batch of each process.
        precision: Precision of the forward pass: `fp32`, `bf16` or `fp16`.
        min_score: Objects with a lower score are left out, and all but the best 100 of a picture.
        overlays: Draw what is predicted on the pictures.
        part_size: Pictures per parquet file.
        num_workers: Processes that read and decode; by default those of the options, or one per CPU, 8 at most.

    Raises:
        SViTError: If an argument is impossible, or the output folder is about something else.
    """
    require_positive(batch_size=batch_size, part_size=part_size)
    if not 0 <= min_score <= 1:
        raise SViTError(f"`min_score` is {min_score}; it has to be from 0 to 1.")
    folder = None if output is None else Path(output)
    if overlays and folder is None:
        raise SViTError("`overlays` is True, and `output` names no folder for them.")
    source = open_images(images, split=split)
    task = opened.task
    predictor = DensePredictor(task, opened.model, precision, min_score, folder, overlays)
    options = images if isinstance(images, DataOptions) else DataOptions()
    about = header(source, opened.model, task.labels, task.processor) | {
        "task": task.name,
        "precision": precision,
        "min_score": min_score,
        "overlays": overlays,
        "part_size": part_size,
    }
    predictions = predict_parts(
        source,
        predictor.prepare,
        predictor.predict,
        COLUMNS,
        about,
        output=folder,
        part_size=part_size,
        batch_size=batch_size,
        num_workers=workers_per_rank(options) if num_workers is None else num_workers,
        describe=_in_words,
    )
    if folder is not None and processes().is_main_process:
        _write_coco(predictions, task.labels, folder / COCO_FILE)
    return predictions


def file_name(row: dict[str, Any]) -> str:
    """Return the name of the files that are written for a picture: its number, and its own name if it has one."""
    stem = Path(row["source"]).stem[:LONGEST_NAME]
    return f"{row['sample_id']:06d}-{stem}.png" if row["row"] == 0 else f"{row['sample_id']:06d}.png"


def _classes(classes: np.ndarray) -> Objects:
    """Return the classes of pixels `(H, W)` as one object for each that is there."""
    there = np.unique(classes)
    masks = classes == there[:, None, None]
    return Objects(boxes_of_masks(masks), there, masks)


def _best(objects: Objects, min_score: float) -> Objects:
    assert objects.scores is not None
    best = np.argsort(-objects.scores, kind="stable")[:MAX_DETECTIONS]
    return objects.select(best[objects.scores[best] >= min_score])


def _numbered(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    """Return the places of objects, from 1, as a mask `(H, W)`; the best one on top, 0 where there is none."""
    assert objects.masks is not None
    numbers = np.zeros(size, dtype=np.int64)
    for place in reversed(range(len(objects))):
        numbers[objects.masks[place]] = place + 1
    return numbers


def _image(numbers: np.ndarray) -> Image.Image:
    # at most 255 classes, and 100 objects
    return Image.fromarray(numbers.astype(np.uint8))


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        image.save(temporary, "PNG")


def _write_coco(predictions: Predictions, labels: Sequence[str], path: Path) -> None:
    """Write the form of COCO's annotation files, with a `score` in each annotation; broken pictures are left out."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in predictions.rows():
        if row["error"] is not None:
            continue
        name = row["source"] if row["row"] == 0 else f"{row['source']}, row {row['row']}"
        size = [row["height"], row["width"]]
        images.append({"id": row["sample_id"], "file_name": name, "height": size[0], "width": size[1]})
        for entry in row["objects"]:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": row["sample_id"],
                "category_id": entry["label_id"],
                "bbox": entry["bbox"],
                "area": entry["area"],
                "iscrowd": 0,
            }
            if entry["segmentation"] is not None:
                annotation["segmentation"] = {"size": size, "counts": entry["segmentation"]}
            if entry["score"] is not None:
                annotation["score"] = entry["score"]
            annotations.append(annotation)
    categories = [{"id": number, "name": label} for number, label in enumerate(labels)]
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump({"images": images, "categories": categories, "annotations": annotations}, file)


def _in_words(row: dict[str, Any]) -> str:
    objects = row["objects"]
    if objects and objects[0]["score"] is None:
        share = 1 / (row["height"] * row["width"])
        return "  ".join(f"{entry['label']} {entry['area'] * share:.1%}" for entry in objects)
    counts = Counter(entry["label"] for entry in objects)
    return "  ".join(f"{count} {label}" for label, count in counts.items()) or "nothing"
