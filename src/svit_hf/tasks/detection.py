# SPDX-License-Identifier: Apache-2.0
"""Detection: a box and a class for every object.

Columns: `image`, and `objects`, as data sets on the Hub have it: lists `bbox` and `category` (or another name in
`CATEGORY_FIELDS`), numbers or names, and `iscrowd` where there are crowds. Folders: COCO's JSON
(`svit_hf.tasks.coco`), YOLO's (`svit_hf.tasks.yolo`), or parquet files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from svit_hf.errors import DataError
from svit_hf.tasks import drawing
from svit_hf.tasks.average_precision import AveragePrecision
from svit_hf.tasks.coco import coco_rows
from svit_hf.tasks.objects import (
    Objects,
    category_field,
    class_indices,
    corner_boxes,
    features_of_objects,
    object_fields,
    stored_objects,
)
from svit_hf.tasks.pictures import Origin, View, decode_picture
from svit_hf.tasks.rows import BOX_FORMAT, CLASS_NAMES, CLASSES_OF_OBJECTS, no_rows, parquet_rows
from svit_hf.tasks.task import DenseTask, Rows, Sample
from svit_hf.tasks.yolo import yolo_rows


# of predictions that are drawn
DRAWN_SCORE = 0.5


class Detection(DenseTask):
    """A box and a class for every object; targets and predictions are `Objects`."""

    name = "detection"
    best_metric = "map"
    takes_crops = False
    annotation_options = ("box_format", "clip_boxes")
    annotation_columns = ("objects",)
    other_columns = ("width", "height")

    @classmethod
    def find_rows(cls, path: Path, split: str) -> Rows:
        """Find a split in parquet files, COCO's JSON, or YOLO's folders."""
        rows = parquet_rows(path, split, CLASSES_OF_OBJECTS) or coco_rows(path, split) or yolo_rows(path, split)
        if rows is None:
            raise no_rows(path, split, f"{split}.parquet, COCO's JSON, or folders images/ and labels/ (YOLO)")
        return rows

    def read(self, row: Mapping[str, Any], origin: Origin) -> Sample:
        """Decode a row, and check its boxes and classes."""
        picture = decode_picture(row.get("image"), origin)
        check_stated_size(row, picture, origin)
        fields = object_fields(row, origin)
        options = self.options_of(row)
        box_format = row.get(BOX_FORMAT, options.box_format)
        boxes, is_there = corner_boxes(
            fields.get("bbox", []), box_format, (picture.height, picture.width), origin, options.clip_boxes
        )
        labels = class_indices(category_field(fields, len(boxes), origin), self.labels, origin, row.get(CLASS_NAMES))
        crowd = np.array([bool(value) for value in fields.get("iscrowd", [False] * len(boxes))], dtype=bool)
        return Sample(picture, Objects(boxes, labels, crowd=crowd).select(is_there), origin)

    def features(self) -> dict[str, Any]:
        """Return those of objects."""
        return {"objects": features_of_objects(self.labels)}

    def stored(self, sample: Sample) -> dict[str, Any]:
        """Return boxes of corner, width and height, with class indices."""
        return {"objects": stored_objects(sample.target)}

    def example(self, sample: Sample, view: View) -> dict[str, Any]:
        """Return `pixel_values` `(3, height, width)`, `class_labels` `(N,)`, and `boxes` `(N, 4)`.

        Boxes are centre, width and height as shares of the view. Crowds are left out.
        """
        boxes, visible = view.of_boxes(sample.target.boxes)
        kept = (visible >= self.augmentation.min_visible) & ~sample.target.crowd
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        shares = np.concatenate([centres, boxes[:, 2:] - boxes[:, :2]], axis=1) / [*view.size[::-1], *view.size[::-1]]
        # a box that is cut to nothing has no overlap with any other
        kept &= (shares[:, 2:] > 0).all(1)
        return {
            "pixel_values": view.of_picture(sample.picture),
            "class_labels": torch.from_numpy(sample.target.labels[kept]),
            "boxes": torch.from_numpy(shares[kept]).float(),
        }

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack pixels, and list what is in each."""
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": [{name: example[name] for name in ("class_labels", "boxes")} for example in examples],
        }

    def metric(self) -> AveragePrecision:
        """Judge boxes as COCO does."""
        return AveragePrecision(self.labels, of_masks=False)

    def predictions(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[Objects]:
        """Return all that the head predicts, with scores from high to low; boxes end where their picture does."""
        processor: Any = self.processor
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        return [
            Objects(
                np.clip(entry["boxes"].cpu().double().numpy(), 0, [width, height, width, height]),
                entry["labels"].cpu().numpy(),
                scores=entry["scores"].cpu().double().numpy(),
            )
            for entry, (height, width) in zip(found, sizes, strict=True)
        ]

    def draw(self, picture: Image.Image, prediction: Objects) -> Image.Image:
        """Draw the boxes that are more likely than not, and all boxes of an annotation."""
        drawn = picture.convert("RGB")
        for place in range(len(prediction)):
            score = None if prediction.scores is None else float(prediction.scores[place])
            if score is None or score >= DRAWN_SCORE:
                label = int(prediction.labels[place])
                text = self.labels[label] + ("" if score is None else f" {score:.2f}")
                drawing.box(drawn, prediction.boxes[place].tolist(), text, drawing.color(label))
        return drawn


def check_stated_size(row: Mapping[str, Any], picture: Image.Image, origin: Origin) -> None:
    """Refuse annotations that were made for a picture of another size.

    Raises:
        DataError: If the columns `width` and `height` are there, and are not those of the picture.
    """
    stated = (row.get("width"), row.get("height"))
    if None not in stated and stated != picture.size:
        raise DataError(
            f"{origin}: the annotation is for an image of {stated[0]} x {stated[1]} pixels; this one has "
            f"{picture.width} x {picture.height}, upright."
        )
