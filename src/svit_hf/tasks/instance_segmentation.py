# SPDX-License-Identifier: Apache-2.0
"""Instance segmentation: a mask and a class for every object.

Columns: `image`, and either `mask`, a picture of one channel in which 0 is background and every other value an object
(with several classes also `categories`, one for each value that is there, ascending), or `objects` with the lists
`segmentation`, `category` and `iscrowd`, as COCO's JSON has them. Folders: COCO's JSON, or `images` and `masks`; or
parquet files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from svit_hf.errors import DataError
from svit_hf.tasks import drawing
from svit_hf.tasks.average_precision import AveragePrecision
from svit_hf.tasks.coco import coco_rows, decode_segmentation, encode_run_lengths
from svit_hf.tasks.detection import DRAWN_SCORE, check_stated_size
from svit_hf.tasks.objects import (
    Objects,
    boxes_of_masks,
    category_field,
    class_indices,
    features_of_objects,
    object_fields,
    stored_objects,
)
from svit_hf.tasks.pictures import Origin, View, decode_mask, decode_picture
from svit_hf.tasks.rows import CLASS_NAMES, CLASSES_OF_OBJECTS, parquet_rows
from svit_hf.tasks.semantic_segmentation import SemanticSegmentation
from svit_hf.tasks.task import DenseTask, Rows, Sample


class InstanceSegmentation(DenseTask):
    """A mask and a class for every object; targets and predictions are `Objects` with masks."""

    name = "instance_segmentation"
    best_metric = "map"
    annotation_columns = ("mask", "objects")
    other_columns = ("categories", "width", "height")

    @classmethod
    def find_rows(cls, path: Path, split: str) -> Rows:
        """Find a split in COCO's JSON, parquet files, or folders `images` and `masks`."""
        rows = coco_rows(path, split) or parquet_rows(path, split, CLASSES_OF_OBJECTS)
        return rows or SemanticSegmentation.find_rows(path, split)

    def read(self, row: Mapping[str, Any], origin: Origin) -> Sample:
        """Decode a row, and check its masks and classes."""
        picture = decode_picture(row.get("image"), origin)
        check_stated_size(row, picture, origin)
        if row.get("mask") is not None:
            target = self._from_mask(row, (picture.height, picture.width), origin)
        else:
            target = self._from_objects(row, (picture.height, picture.width), origin)
        return Sample(picture, target, origin)

    def features(self) -> dict[str, Any]:
        """Return those of objects with masks."""
        import datasets

        code = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
        return {"objects": {**features_of_objects(self.labels), "segmentation": datasets.List(code)}}

    def stored(self, sample: Sample) -> dict[str, Any]:
        """Return masks as run-length codes, with class indices."""
        masks = [encode_run_lengths(mask) for mask in sample.target.masks]
        return {"objects": {**stored_objects(sample.target), "segmentation": masks}}

    def example(self, sample: Sample, view: View) -> dict[str, Any]:
        """Return `pixel_values` `(3, height, width)`, `class_labels` `(N,)`, `mask_labels` `(N, height/2, width/2)`.

        Crowds, and objects of which too little is in the view, are left out.
        """
        objects = sample.target
        # the head predicts at a quarter and takes its targets at points: all pixels would be four times the work
        masks = replace(view, size=(view.size[0] // 2, view.size[1] // 2)).of_masks(objects.masks)
        part = objects.masks[:, view.top : view.top + view.height, view.left : view.left + view.width]
        visible = part.sum((1, 2)) / objects.masks.sum((1, 2))
        kept = (visible >= self.augmentation.min_visible) & masks.any((1, 2)) & ~objects.crowd
        return {
            "pixel_values": view.of_picture(sample.picture),
            "class_labels": torch.from_numpy(objects.labels[kept]),
            "mask_labels": torch.from_numpy(masks[kept]).float(),
        }

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack pixels, and list what is in each."""
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "class_labels": [example["class_labels"] for example in examples],
            "mask_labels": [example["mask_labels"] for example in examples],
        }

    def metric(self) -> AveragePrecision:
        """Judge masks as COCO does."""
        return AveragePrecision(self.labels, of_masks=True)

    def predictions(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[Objects]:
        """Return all masks that the head predicts, with their scores."""
        processor: Any = self.processor
        found = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
        )
        return [_objects(entry, size) for entry, size in zip(found, sizes, strict=True)]

    def draw(self, picture: Image.Image, prediction: Objects) -> Image.Image:
        """Tint the objects that are more likely than not, each in a colour of its own, and all of an annotation."""
        assert prediction.masks is not None
        for place, mask in enumerate(prediction.masks):
            if prediction.scores is None or prediction.scores[place] >= DRAWN_SCORE:
                picture = drawing.overlay(picture, mask, drawing.color(place))
        return picture.copy()

    def _from_mask(self, row: Mapping[str, Any], size: tuple[int, int], origin: Origin) -> Objects:
        numbers = decode_mask(row["mask"], origin, size)
        values = np.unique(numbers)
        values = values[values != 0]
        categories = row.get("categories")
        if categories is None:
            if len(self.labels) > 1:
                raise DataError(
                    f"{origin}: there are {len(self.labels)} classes and no column `categories`, which names one for "
                    "each value of the mask."
                )
            categories = [0] * len(values)
        if len(categories) != len(values):
            raise DataError(f"{origin}: the mask has {len(values)} objects, `categories` has {len(categories)}.")
        masks = numbers == values[:, None, None]
        return _annotated(masks, class_indices(categories, self.labels, origin), np.zeros(len(values), dtype=bool))

    def _from_objects(self, row: Mapping[str, Any], size: tuple[int, int], origin: Origin) -> Objects:
        fields = object_fields(row, origin)
        segmentations = fields.get("segmentation", [])
        categories = category_field(fields, len(segmentations), origin)
        masks = np.zeros((len(segmentations), *size), dtype=bool)
        for place, segmentation in enumerate(segmentations):
            masks[place] = decode_segmentation(segmentation, size, origin)
        crowd = np.array([bool(value) for value in fields.get("iscrowd", [False] * len(masks))], dtype=bool)
        labels = class_indices(categories, self.labels, origin, row.get(CLASS_NAMES))
        return _annotated(masks, labels, crowd)


def _annotated(masks: np.ndarray, labels: np.ndarray, crowd: np.ndarray) -> Objects:
    # polygons thinner than a pixel cover none
    is_there = masks.any((1, 2))
    masks = masks[is_there]
    return Objects(boxes_of_masks(masks), labels[is_there], masks, crowd=crowd[is_there])


def _objects(entry: Mapping[str, Any], size: tuple[int, int]) -> Objects:
    segments = entry["segments_info"]
    masks = np.zeros((0, *size), dtype=bool)
    if segments:
        # without any the processor gives a map of another shape
        masks = entry["segmentation"].cpu().numpy() > 0
    return Objects(
        boxes_of_masks(masks),
        np.array([segment["label_id"] for segment in segments], dtype=np.int64),
        masks,
        np.array([segment["score"] for segment in segments], dtype=np.float64),
    )
