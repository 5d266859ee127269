# SPDX-License-Identifier: Apache-2.0
"""The rows of a task as the loaders of `svit_hf.data` read them: of a folder, of a table, or in passing."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from svit_hf.data.decoding import DecodingError
from svit_hf.data.sources import (
    UNLABELLED,
    ColumnSource,
    ImageSource,
    IndexedSource,
    Row,
    StreamingSource,
    TableSource,
    encoded_image,
    stored_image,
)
from svit_hf.tasks.options import IS_STORED
from svit_hf.tasks.pictures import BrokenPictureError, Origin
from svit_hf.tasks.rows import CLASS_NAMES
from svit_hf.tasks.task import DenseTask, Rows, Sample


class TaskSource(ImageSource):
    """Rows that a task decodes, and makes batches of."""

    task: DenseTask

    def origin(self, sample_id: int) -> Origin:
        """Return where a row is from, for messages."""
        return Origin(*self.locate(sample_id))

    def decode(self, row: Row) -> Sample:
        """Return a sample.

        Raises:
            DecodingError: If the picture is broken.
            DataError: If the annotation cannot be used.
        """
        assert row.columns is not None
        try:
            return self.task.read(row.columns, self.origin(row.sample_id))
        except BrokenPictureError as error:
            raise DecodingError(str(error)) from error

    def features(self) -> datasets.Features:
        """Return the columns that `stored` writes: the picture, and the annotation as the task stores it."""
        is_stored = {IS_STORED: datasets.Value("bool")}
        return datasets.Features({"image": datasets.Image(), **self.task.features(), **is_stored})

    def stored(self, row: Row, decoded: Sample) -> dict[str, Any]:
        """Return what is written of a row into a table, by its columns; the picture as it was stored."""
        assert row.columns is not None
        image = row.columns["image"]
        encoded = encoded_image(str(image) if isinstance(image, Path) else stored_image(image))
        return {"image": encoded, **self.task.stored(decoded), IS_STORED: True}

    def batch(self, samples: Sequence[tuple[Row, Any]]) -> dict[str, Any]:
        """Return what the model takes; of an evaluation `pixel_values` `(B, 3, H, W)` and `truths`."""
        examples = [example for _, example in samples]
        if examples and isinstance(examples[0], dict):
            return self.task.collate(examples)
        pixels = [pixels for pixels, _ in examples]
        return {
            "pixel_values": torch.stack(pixels) if pixels else torch.empty(0, 3, *self.task.size),
            "truths": [truth for _, truth in examples],
        }


class RowsSource(TaskSource, IndexedSource):
    """Rows of a folder, as a task finds them."""

    def __init__(self, rows: Rows, task: DenseTask, name: str):
        super().__init__(name, task.labels, {name: len(rows)})
        self.found_rows, self.task = rows, task

    def row(self, sample_id: int) -> Row:
        """Return a row, whose picture may still be a file."""
        return Row(sample_id, None, UNLABELLED, self.found_rows.load(sample_id))

    def origin(self, sample_id: int) -> Origin:
        """Return where a row is from, for messages."""
        return self.found_rows.origins[sample_id]

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the file that a row is in, and its place there."""
        origin = self.origin(sample_id)
        return origin.file, origin.row if isinstance(origin.row, int) else 0

    def parts(self) -> Mapping[str, Any]:
        """Return the sizes of the files with the annotations."""
        return {file.name: file.stat().st_size for file in self.found_rows.files}

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these rows from others: files, and the order of the rows."""
        fingerprint = super().fingerprint()
        places = json.dumps([str(origin) for origin in self.found_rows.origins])
        return fingerprint | {"digest": fingerprint["digest"] + hashlib.sha256(places.encode()).hexdigest()}


class TaskColumns(TaskSource, ColumnSource):
    """Rows whose columns a task reads; the other arguments are those of `ColumnSource`.

    Args:
        task: The task.
        columns: Columns of the data, by the names that the task has for them.
        class_names: What numbers of classes stand for; None where the data do not say it.
        dataset: Table or stream of `datasets`, not decoded.
        name: What to call the data.
        **options: More arguments of `ColumnSource`.
    """

    def __init__(
        self,
        task: DenseTask,
        columns: Mapping[str, str],
        class_names: Sequence[str] | None,
        dataset: Any,
        name: str,
        **options: Any,
    ):
        super().__init__(dataset, tuple(columns.values()), task.labels, name, **options)
        self.task, self.columns_of_task, self.class_names = task, columns, class_names

    def row_of(self, example: Mapping[str, Any], sample_id: int) -> Row:
        """Return what was read as a row."""
        found = {name: _field(example, column) for name, column in self.columns_of_task.items()}
        if self.class_names is not None:
            found[CLASS_NAMES] = self.class_names
        if self.has_files:
            found |= {name: _file(found[name]) for name in ("image", "mask") if name in found}
        return Row(sample_id, None, UNLABELLED, found)


class TaskTable(TaskColumns, TableSource):
    """Rows of a table, any of which can be read at any time."""


class TaskStream(TaskColumns, StreamingSource):
    """Rows of shards that are read in passing."""


def _field(example: Mapping[str, Any], column: str) -> Any:
    """Return a column, or a field inside it; None where it is not there, which the task finds out, and says where."""
    value: Any = example
    for part in (column,) if column in example else column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _file(stored: Any) -> Any:
    found = stored_image(stored, has_files=True)
    return Path(found) if isinstance(found, str) else found
