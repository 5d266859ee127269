# SPDX-License-Identifier: Apache-2.0
"""The rows of a task as the loaders of `svit_hf.data` read them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from svit_hf.data.decoding import DecodingError, ImageLimits
from svit_hf.data.sources import UNLABELLED, IndexedSource, Row
from svit_hf.tasks.pictures import BrokenPictureError
from svit_hf.tasks.task import DenseTask, Rows, Sample


class RowsSource(IndexedSource):
    """The rows of a split; the task decodes them, and makes batches of the examples.

    Args:
        rows: The rows.
        task: The task.
        name: What to call them.
    """

    def __init__(self, rows: Rows, task: DenseTask, name: str):
        super().__init__(name, task.labels, {name: len(rows)})
        self.found_rows, self.task = rows, task

    def row(self, sample_id: int) -> Row:
        """Return the place alone: the task reads the columns."""
        return Row(sample_id, None, UNLABELLED)

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the file that a row is in, and its place there."""
        origin = self.found_rows.origins[sample_id]
        return origin.file, origin.row if isinstance(origin.row, int) else 0

    def decode(self, row: Row, limits: ImageLimits) -> Sample:
        """Return a sample.

        Raises:
            DecodingError: If the picture is broken.
            DataError: If the annotation cannot be used.
        """
        try:
            return self.task.read(*self.found_rows[row.sample_id])
        except BrokenPictureError as error:
            raise DecodingError(str(error)) from error

    def batch(self, samples: Sequence[tuple[Row, Any]]) -> dict[str, Any]:
        """Return what the model takes; of an evaluation `pixel_values` `(B, 3, H, W)` and `truths`."""
        examples = [example for _, example in samples]
        if examples and isinstance(examples[0], dict):
            return self.task.collate(examples)
        pixels = [example.pixel_values for example in examples]
        return {
            "pixel_values": torch.stack(pixels) if pixels else torch.empty(0, 3, *self.task.size),
            "truths": [example.truth for example in examples],
        }

    def parts(self) -> Mapping[str, Any]:
        """Return the sizes of the files with the annotations."""
        return {file.name: file.stat().st_size for file in self.found_rows.files}

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these rows from others: files, and the order of the rows."""
        fingerprint = super().fingerprint()
        places = json.dumps([str(origin) for origin in self.found_rows.origins])
        return fingerprint | {"digest": fingerprint["digest"] + hashlib.sha256(places.encode()).hexdigest()}
