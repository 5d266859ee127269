# SPDX-License-Identifier: Apache-2.0
"""Images, labelled or not, as training and evaluation read them: any of them at any time, or shard by shard.

`opening.py` finds out what a path holds and makes these.
"""

import hashlib
import json
import tarfile
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from svit_hf.data.columns import LabelIds, field_of, top_columns
from svit_hf.data.counts import FileCounts
from svit_hf.data.decoding import DEFAULT_LIMITS, ImageLimits, decode_image
from svit_hf.data.folders import FolderSplit
from svit_hf.data.sharding import segments
from svit_hf.errors import DataError, SViTError, listed
from svit_hf.urls import without_credentials


# a stream of days outlives a server's bad hours: seconds between attempts, and how many there are
READ_RETRIES = 60
READ_RETRY_SECONDS = 5
# the label of an image that has none
UNLABELLED = -1
# parts that a fingerprint lists one by one, so that a difference can be named
MAX_LISTED_PARTS = 1000


# of file systems, pyarrow, tarfile and the builders of datasets: whatever parsing foreign bytes ends in
_READING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, EOFError),
    *(tarfile.TarError, datasets.exceptions.DatasetsError),
)


class Row(NamedTuple):
    """An image as it is stored, with its label if it has one.

    Attributes:
        sample_id: Its place in the source.
        image: Encoded bytes, or the path of a file with them.
        label: Number of the class; `UNLABELLED` for none. Numbers of all labels, if an image may have several.
        columns: What is stored, where that is more than an image and a label.
    """

    sample_id: int
    image: bytes | str | None
    label: int | tuple[int, ...]
    columns: Mapping[str, Any] | None = None


class ImageSource(ABC):
    """The images of one split, in an order that never changes.

    Args:
        description: What this is, in a few words.
        label_names: Names of the classes, in order; none if the images are unlabelled.
        shards: Rows of each shard, by its name.

    Attributes:
        num_samples: Images, broken ones included.
        is_streaming: Whether images can only be read in passing, shard by shard.
        is_multi_label: Whether an image has any number of labels.
        limits: The largest image that is decoded.
        description: What this is, in a line.
        split: Name of the split, if it was opened by `open_source`.
        remarks: What a user should know before using it: files that are not used, odd names of classes.
        shard_sizes: Rows of each shard.
        shard_names: Names of the shards.
    """

    is_streaming: bool
    is_multi_label: bool = False
    limits: ImageLimits = DEFAULT_LIMITS
    split: str | None = None
    remarks: tuple[str, ...] = ()

    def __init__(self, description: str, label_names: Sequence[str], shards: Mapping[str, int]):
        self.label_names = tuple(label_names)
        self.shard_names = tuple(shards)
        self.shard_sizes = tuple(shards.values())
        self.num_samples = sum(self.shard_sizes)
        self.first_rows = tuple(accumulate(self.shard_sizes, initial=0))
        classes = f"{len(self.label_names)} classes" if self.label_names else "unlabelled"
        self.description = without_credentials(f"{description}, {self.num_samples} images, {classes}")

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the name of the shard that has a sample, and its row there."""
        shard = self.shard_of(sample_id)
        return self.shard_names[shard], sample_id - self.first_rows[shard]

    def shard_of(self, sample_id: int) -> int:
        """Return the number of the shard that has a sample."""
        return bisect_right(self.first_rows, sample_id) - 1

    @abstractmethod
    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Yield rows of a shard, from `first` up to and without `stop`."""

    def rows_at(self, places: range) -> Iterator[Row]:
        """Yield the rows at places of the source that follow each other."""
        order = list(range(len(self.shard_sizes)))
        for place in segments(self.shard_sizes, order, places.start, len(places)):
            yield from self.rows(*place)

    def decode(self, row: Row) -> Any:
        """Return what examples are made of: the picture.

        Raises:
            DecodingError: If it is broken.
        """
        picture: Image.Image = decode_image(row.image, self.limits)
        return picture

    def batch(self, samples: Sequence[tuple[Row, Any]]) -> dict[str, Any]:
        """Return a batch of rows and what a transform made of each.

        Returns:
            `pixel_values` `(B, 3, H, W)`, and `labels`: numbers of the classes, `(B,)`, int64; with several labels per
            image `(B, C)`, float32 of 0 and 1.
        """
        pixels, labels = [pixels for _, pixels in samples], [row.label for row, _ in samples]
        batch = {"pixel_values": torch.stack(pixels) if pixels else torch.empty(0, 3, 0, 0)}
        if not self.is_multi_label:
            return batch | {"labels": torch.tensor(labels, dtype=torch.int64)}
        several = torch.zeros(len(labels), len(self.label_names))
        for place, ids in enumerate(labels):
            several[place, list(ids)] = 1  # type: ignore[arg-type]
        return batch | {"labels": several}

    def features(self) -> datasets.Features:
        """Return the columns that `stored` writes."""
        label = datasets.ClassLabel(names=list(self.label_names))
        return datasets.Features(
            {"image": datasets.Image(), "label": datasets.List(label) if self.is_multi_label else label}
        )

    def stored(self, row: Row, decoded: Any) -> dict[str, Any]:
        """Return what is written of a row into a table, by its columns; the picture as it was stored."""
        return {"image": encoded_image(row.image), "label": row.label}

    def image_names(self) -> list[str]:
        """Return the names of the image files, empty where they are not known."""
        return [""] * self.num_samples

    def parts(self) -> Mapping[str, Any]:
        """Return what changes when the data do, by name: shards with their rows, for example."""
        return dict(zip(self.shard_names, self.shard_sizes, strict=True))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this source from another one, cheaply and as JSON: nothing of the images is read."""
        parts = self.parts()
        content = json.dumps(list(parts.items())).encode()
        return {
            "class_names": list(self.label_names),
            "num_images": self.num_samples,
            "digest": hashlib.sha256(content).hexdigest(),
            "parts": dict(parts) if len(parts) <= MAX_LISTED_PARTS else None,
        }


def differences(saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between two fingerprints; nothing if they are equal."""
    lines = []
    if saved["class_names"] != found["class_names"]:
        lines.append(f"the classes were {listed(saved['class_names'])} and are {listed(found['class_names'])}")
    if saved["num_images"] != found["num_images"]:
        lines.append(f"there were {saved['num_images']} images and there are {found['num_images']}")
    if saved["digest"] != found["digest"]:
        old, new = saved["parts"], found["parts"]
        if old is not None and new is not None:
            lines += [f"{name!r} is gone" for name in old if name not in new]
            lines += [f"{name!r} is new" for name in new if name not in old]
            changed = [name for name in old if new.get(name, old[name]) != old[name]]
            lines += [f"{name!r} was {old[name]} and is {new[name]}" for name in changed]
        if not lines:
            lines.append("the names of the files, or their order, are others")
    return lines


class IndexedSource(ImageSource):
    """Images any of which can be read at any time."""

    is_streaming = False

    @abstractmethod
    def row(self, sample_id: int) -> Row:
        """Return an image."""

    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Yield images that lie side by side."""
        start = self.first_rows[shard]
        for sample_id in range(start + first, start + stop):
            yield self.row(sample_id)


class FolderSource(IndexedSource):
    """Image files of a local folder, each in the folder of its class; without `label_names`, no labels are wanted."""

    def __init__(self, root: str, images: FolderSplit, label_names: Sequence[str], name: str):
        super().__init__(f"{name}, image files", label_names, {name: len(images.files)})
        self.root = root
        self.files = images.files
        ids = {name: index for index, name in enumerate(label_names)}
        self.labels = [ids[name] for name in images.classes] if label_names else [UNLABELLED] * len(images.files)

    def row(self, sample_id: int) -> Row:
        """Return the path of an image, and its label."""
        return Row(sample_id, f"{self.root}/{self.files[sample_id]}", self.labels[sample_id])

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the file, and row 0."""
        return self.files[sample_id], 0

    def image_names(self) -> list[str]:
        """Return the names of the image files."""
        return list(self.files)

    def parts(self) -> Mapping[str, Any]:
        """Return the files with their labels."""
        return dict(zip(self.files, self.labels, strict=True))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this source from another one; of many files, only the numbers of each class are listed."""
        fingerprint = super().fingerprint()
        if fingerprint["parts"] is None:
            counts = Counter(self.labels)
            fingerprint["parts"] = {name: counts[index] for index, name in enumerate(self.label_names)}
        return fingerprint


class ColumnSource(ImageSource):
    """Images in a column of one or several files, mostly with labels in another.

    Args:
        dataset: Table or stream of `datasets`, not decoded.
        columns: Column of the images and, if there are labels, theirs.
        label_names: Names of the classes, in order; none without labels.
        name: What to call the data.
        counts: Rows of the shards of each file, by the file's name.
        stored_names: What integers stand for in each file; none where labels are names or there are no labels.
        file_sizes: Bytes of each file, where that is known.
        has_files: Whether there are names of image files, which were put on this machine for that. Paths in other data
            come from whoever made them, and are never opened.
    """

    def __init__(
        self,
        dataset: Any,
        columns: tuple[str, ...],
        label_names: Sequence[str],
        name: str,
        counts: Mapping[str, FileCounts],
        stored_names: Sequence[Sequence[str] | None] | None = None,
        file_sizes: Sequence[int] = (),
        has_files: bool = False,
    ):
        shards = {
            f"{file}, row group {group}" if len(sizes) > 1 else file: size
            for file, sizes in counts.items()
            for group, size in enumerate(sizes)
        }
        how = f"streamed from {len(shards)} shards" if self.is_streaming else "indexed"
        super().__init__(f"{name}, {how}", label_names, shards)
        self.dataset, self.columns, self.counts = dataset, columns, counts
        self.file_sizes, self.has_files = tuple(file_sizes), has_files
        # of each shard its file, its number there, and how many there are
        self.places = [
            (file, group, len(sizes)) for file, sizes in enumerate(counts.values()) for group in range(len(sizes))
        ]
        self.label_ids = [LabelIds(self.label_names, names) for names in stored_names or [None] * len(counts)]

    def row_of(self, example: Mapping[str, Any], sample_id: int) -> Row:
        """Return what was read as a row.

        Raises:
            DataError: If a label is no class.
        """
        image, *labels = (field_of(example, column) for column in self.columns)
        label: int | tuple[int, ...] = self.label_of(labels[0], sample_id) if labels else UNLABELLED
        return Row(sample_id, stored_image(image, self.has_files), label)

    def label_of(self, stored: Any, sample_id: int) -> int | tuple[int, ...]:
        """Return the number of a label, or those of several.

        Raises:
            DataError: If one is no class.
        """
        ids = self.label_ids[self.places[self.shard_of(sample_id)][0]]
        return (ids.several if self.is_multi_label else ids)(stored, *self.locate(sample_id))

    def parts(self) -> Mapping[str, Any]:
        """Return the rows of the shards of each file, and its bytes."""
        file_sizes = self.file_sizes or [0] * len(self.counts)
        return {
            file: [*sizes, num_bytes] for (file, sizes), num_bytes in zip(self.counts.items(), file_sizes, strict=True)
        }


class TableSource(ColumnSource, IndexedSource):
    """Rows of a table of `datasets`, which is on this machine; each file is one shard."""

    def row(self, sample_id: int) -> Row:
        """Return an image."""
        return self.row_of(self.dataset[sample_id], sample_id)

    def labels(self) -> list[int | tuple[int, ...]]:
        """Read the labels of all images, and nothing else of them.

        Raises:
            DataError: If one is no class; the message names the first of them.
        """
        (column,) = self.columns[1:]
        found, problems = [], []
        for sample_id, row in enumerate(self.dataset.select_columns(top_columns(self.dataset.features, column))):
            try:
                found.append(self.label_of(field_of(row, column), sample_id))
            except DataError as error:
                problems.append(str(error))
        if problems:
            more = f" {len(problems) - 1} more labels are none either." if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more} Labels of -1 are those of a split without labels.")
        return found

    def image_names(self) -> list[str]:
        """Return the names that the table has for its images, which need not be files here."""
        images = self.dataset.with_format("arrow")[:][self.columns[0]]
        if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
            return [name or "" for name in pc.struct_field(images, "path").to_pylist()]
        return super().image_names()

    def parts(self) -> Mapping[str, Any]:
        """Return the rows and the bytes of each file; rows alone where bytes are not known."""
        return super().parts() if self.file_sizes else ImageSource.parts(self)


class SelectedSource(IndexedSource):
    """Some images of another source, by their places there."""

    def __init__(self, source: IndexedSource, sample_ids: Sequence[int], name: str):
        super().__init__(name, source.label_names, {name: len(sample_ids)})
        self.source = source
        self.sample_ids = tuple(sample_ids)
        self.remarks = source.remarks
        self.is_multi_label, self.limits = source.is_multi_label, source.limits

    def row(self, sample_id: int) -> Row:
        """Return an image, by its place in the selection."""
        return self.source.row(self.sample_ids[sample_id])._replace(sample_id=sample_id)

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return where the other source has it."""
        return self.source.locate(self.sample_ids[sample_id])

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the other source, with what was selected."""
        selected = hashlib.sha256(json.dumps(self.sample_ids).encode()).hexdigest()
        whole = self.source.fingerprint()
        return whole | {"num_images": self.num_samples, "digest": whole["digest"] + selected}


class StreamingSource(ColumnSource):
    """Shards that are read in passing, each opened by itself: a row group of a parquet file, or a tar."""

    is_streaming = True

    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Open a shard and yield some of its rows.

        Raises:
            DataError: If the shard cannot be read, has fewer rows than were counted, or a label is no class.
        """
        set_read_retries()
        file, group, num_groups = self.places[shard]
        start = self.first_rows[shard]
        found = 0
        with explain_reading(self.shard_names[shard]):
            stream = self.dataset.shard(len(self.counts), file)
            if num_groups > 1:
                stream = stream.reshard().shard(num_groups, group)
            # not `iter(stream)`: inside a worker of a DataLoader that would give a part of the shard
            batches = stream.skip(first).iter(batch_size=1)
            for found, batch in enumerate(islice(batches, stop - first), 1):
                example = {key: value[0] for key, value in batch.items()}
                yield self.row_of(example, start + first + found - 1)
        if found != stop - first:
            raise DataError(
                f"{self.shard_names[shard]} ends after {first + found} rows, but {self.shard_sizes[shard]} were "
                "counted; it changed, or the `index` is about something else."
            )


def stored_image(image: Any, has_files: bool = False) -> bytes | str | None:
    """Return the bytes of a stored image; the path of a file only where files were put there for that."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return image if isinstance(image, bytes) or has_files else None


def encoded_image(stored: bytes | str | None) -> dict[str, bytes | str | None]:
    """Return an image as `datasets` stores it in a table."""
    if isinstance(stored, str):
        path = Path(stored)
        return {"bytes": path.read_bytes(), "path": path.name}
    return {"bytes": stored, "path": None}


@contextmanager
def explain_reading(name: str) -> Iterator[None]:
    """Turn what `datasets` and what is below it raise over damaged or missing files into an error that names the file.

    Raises:
        DataError: Instead.
    """
    try:
        yield
    except SViTError:
        raise
    except _READING_ERRORS as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        cause = cause or error
        raise DataError(f"{name} cannot be read: {type(cause).__name__}: {cause}") from error


def set_read_retries() -> None:
    """Let `datasets` go on after a bad hour of a server.

    It has no other place for these settings; workers that are spawned set them anew.
    """
    datasets.config.STREAMING_READ_MAX_RETRIES = READ_RETRIES
    datasets.config.STREAMING_READ_RETRY_INTERVAL = READ_RETRY_SECONDS
