# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: a class for every pixel.

Columns: `image`, and `mask`, a picture of one channel whose values are class indices; 255 is ignored. Folders:
`images` and `masks` with files of the same names, in the layouts of `svit_hf.tasks.rows.folder_pairs`; or parquet
files.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from svit_hf.errors import DataError, SViTError
from svit_hf.tasks import drawing
from svit_hf.tasks.heads import IGNORED
from svit_hf.tasks.pictures import Origin, View, decode_mask, decode_picture
from svit_hf.tasks.rows import folder_pairs, no_rows, parquet_rows, pictures_in, read_labels
from svit_hf.tasks.task import DenseTask, Metric, Rows, Sample, Truth


class SemanticSegmentation(DenseTask):
    """A class for every pixel; targets and predictions are int64 `(H, W)`.

    The arguments are those of `DenseTask`; of `annotations`, it knows `is_binary` and `reduce_labels`.
    """

    name = "semantic_segmentation"
    best_metric = "mean_iou"
    annotation_options = ("is_binary", "reduce_labels")
    annotation_columns = ("mask",)

    def check(self) -> None:
        """Refuse classes that masks cannot have."""
        is_binary, reduce_labels = self.annotations.is_binary, self.annotations.reduce_labels
        if is_binary and len(self.labels) != 2:
            raise SViTError(
                f"`is_binary` is True, and `labels` is {self.labels}; it needs two: background and object."
            )
        if is_binary and reduce_labels:
            raise SViTError("`is_binary` and `reduce_labels` are both True; a mask is one or the other.")
        if len(self.labels) > IGNORED:
            raise SViTError(
                f"`labels` has {len(self.labels)} names; allowed are {IGNORED}, since {IGNORED} is ignored."
            )

    @classmethod
    def find_rows(cls, path: Path, split: str) -> Rows:
        """Find a split in parquet files, or in folders `images` and `masks`."""
        rows = parquet_rows(path, split)
        if rows is not None:
            return replace(rows, labels=read_labels(path))
        folders = folder_pairs(path, split, "masks")
        if folders is None:
            raise no_rows(path, split, f"{split}.parquet, or folders images/ and masks/ in {split}/ or around it")
        pictures = pictures_in(folders[0])
        masks = {file.stem: file for file in pictures_in(folders[1])}
        for picture in pictures:
            if picture.stem not in masks:
                raise DataError(f"{str(folders[1])!r} has no mask for {picture.name!r}.")

        def load(index: int) -> Mapping[str, Any]:
            return {"image": pictures[index], "mask": masks[pictures[index].stem]}

        files = [masks[picture.stem] for picture in pictures]
        return Rows([Origin(file.name, "the whole mask") for file in files], load, read_labels(path), files)

    def read(self, row: Mapping[str, Any], origin: Origin) -> Sample:
        """Decode a row, and check that the mask has the picture's size and the classes' values."""
        picture = decode_picture(row.get("image"), origin)
        mask = decode_mask(row.get("mask"), origin, (picture.height, picture.width))
        options = self.options_of(row)
        if options.is_binary:
            mask = (mask != 0).astype(np.int64)
        elif options.reduce_labels:
            mask = np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
        strange = np.unique(mask[(mask != IGNORED) & ((mask < 0) | (mask >= len(self.labels)))])
        if strange.size:
            raise DataError(
                f"{origin}: the mask has the values {strange[:10].tolist()}; the {len(self.labels)} classes are 0 to "
                f"{len(self.labels) - 1}, and {IGNORED} is ignored. Masks of an object and nothing else need "
                "`is_binary`."
            )
        return Sample(picture, mask, origin)

    def features(self) -> dict[str, Any]:
        """Return that of masks."""
        import datasets

        return {"mask": datasets.Image()}

    def stored(self, sample: Sample) -> dict[str, Any]:
        """Return a mask of class indices, as PNG."""
        encoded = io.BytesIO()
        Image.fromarray(sample.target.astype(np.uint8)).save(encoded, "PNG")
        return {"mask": {"bytes": encoded.getvalue(), "path": None}}

    def example(self, sample: Sample, view: View) -> dict[str, Any]:
        """Return `pixel_values` `(3, height, width)` and `labels` `(height, width)`."""
        return {
            "pixel_values": view.of_picture(sample.picture),
            "labels": torch.from_numpy(view.of_masks(sample.target)),
        }

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stack examples; heads that predict masks get one mask per class that is there."""
        pixels = torch.stack([example["pixel_values"] for example in examples])
        if self.head.name == "upernet":
            return {"pixel_values": pixels, "labels": torch.stack([example["labels"] for example in examples])}
        classes = [example["labels"].unique() for example in examples]
        classes = [there[there != IGNORED] for there in classes]
        masks = [
            (example["labels"] == there[:, None, None]).float()
            for example, there in zip(examples, classes, strict=True)
        ]
        return {"pixel_values": pixels, "mask_labels": masks, "class_labels": classes}

    def metric(self) -> "ConfusionMatrix":
        """Count pixels by class."""
        return ConfusionMatrix(self.labels)

    def predictions(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Return classes, int64 `(H, W)`."""
        processor: Any = self.processor
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [classes.cpu().numpy().astype(np.int64) for classes in maps]

    def draw(self, picture: Image.Image, prediction: np.ndarray) -> Image.Image:
        """Tint every class but the first, which is the background of most data."""
        for label in np.unique(prediction[(prediction > 0) & (prediction != IGNORED)]):
            picture = drawing.overlay(picture, prediction == label, drawing.color(int(label)))
        return picture.copy()


class ConfusionMatrix(Metric):
    """Pixels by true and predicted class: intersection over union, dice, accuracy.

    A class that neither the masks nor the predictions have is left out of means.
    """

    log_fields = ("mean_iou", "mean_dice", "pixel_accuracy")

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)
        # row: true class, column: predicted class
        self.counts = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)

    def update(self, index: int, prediction: np.ndarray, sample: Sample | Truth) -> None:
        """Count the pixels of a picture that are not ignored."""
        counted = sample.target != IGNORED
        pairs = sample.target[counted] * len(self.labels) + prediction[counted]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def state(self) -> np.ndarray:
        """Return the matrix."""
        return self.counts

    def merge(self, state: np.ndarray) -> None:
        """Add a matrix."""
        self.counts = self.counts + state

    def compute(self) -> dict[str, float]:
        """Return `mean_iou`, `mean_dice`, `pixel_accuracy`, and `iou_LABEL` and `dice_LABEL` for each class.

        Raises:
            SViTError: If no pixel was counted.
        """
        if not self.counts.sum():
            raise SViTError("no pixel was counted: there are no pictures, or everything in their masks is ignored.")
        hits = self.counts.diagonal()
        either = self.counts.sum(0) + self.counts.sum(1)
        is_there = either > 0
        iou = [float(hit / (both - hit)) if both else float("nan") for hit, both in zip(hits, either, strict=True)]
        dice = [float(2 * hit / both) if both else float("nan") for hit, both in zip(hits, either, strict=True)]
        return {
            "mean_iou": float(np.mean(np.array(iou)[is_there])),
            "mean_dice": float(np.mean(np.array(dice)[is_there])),
            "pixel_accuracy": float(hits.sum() / self.counts.sum()),
            **{f"iou_{label}": value for label, value in zip(self.labels, iou, strict=True)},
            **{f"dice_{label}": value for label, value in zip(self.labels, dice, strict=True)},
        }
