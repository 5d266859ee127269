# SPDX-License-Identifier: Apache-2.0
"""Images, labelled or not, wherever they are: the Hub, parquet, webdataset tars, a folder; indexed, or as a stream."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet

from svit_hf.data.columns import (
    LabelIds,
    field_of,
    find_image_column,
    find_label_column,
    names_in_features,
    names_of_labels,
)
from svit_hf.data.locations import Location, find_location
from svit_hf.data.options import DataOptions
from svit_hf.data.row_counts import FileCounts, SourceIndex, check_index, count_parquet, count_tar, names_of
from svit_hf.errors import SViTError


EVALUATION_SPLITS = ("validation", "valid", "val", "test")
# local files up to this size are copied into an index, from which any image can be read at any time
MAX_INDEXED_BYTES = 2 << 30
# a stream of days outlives a server's bad hours: seconds between attempts, and how many there are
READ_RETRIES = 60
READ_RETRY_SECONDS = 5
# the label of an image that has none
UNLABELLED = -1


class Row(NamedTuple):
    """Hold an image as it is stored, with its label if it has one.

    Attributes:
        sample_id: Its place in the source.
        image: Encoded bytes, or the path of a file with them.
        label: Number of the class; `UNLABELLED` for none.
    """

    sample_id: int
    image: bytes | str | None
    label: int


class ImageSource(ABC):
    """Give the images of one split, in an order that never changes.

    Attributes:
        num_samples: Images, broken ones included.
        label_names: Names of the classes, in order; none if the images are unlabelled.
        is_streaming: Whether images can only be read in passing, shard by shard.
        description: What this is, in a line.
        split: Name of the split, if it was opened by `open_source`.
        shard_sizes: Rows of each shard; one shard where any row can be read.
        shard_names: Names of the shards.
    """

    is_streaming: bool
    split: str | None = None

    def __init__(self, description: str, label_names: tuple[str, ...], shards: dict[str, int]):
        self.label_names = label_names
        self.shard_names = tuple(shards)
        self.shard_sizes = tuple(shards.values())
        self.num_samples = sum(self.shard_sizes)
        self.first_rows = tuple(accumulate(self.shard_sizes, initial=0))
        classes = f"{len(label_names)} classes" if label_names else "unlabelled"
        self.description = f"{description}, {self.num_samples} images, {classes}"
        self.label_ids = LabelIds(label_names)

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the name of the shard that has a sample, and its row there."""
        shard = bisect_right(self.first_rows, sample_id) - 1
        return self.shard_names[shard], sample_id - self.first_rows[shard]

    @abstractmethod
    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Yield rows of a shard, from `first` up to and without `stop`."""

    def _row(self, sample_id: int, image: Any, *labels: Any) -> Row:
        """Return what is stored as a row; unlabelled if no label is given."""
        label = self.label_ids(labels[0], *self.locate(sample_id)) if labels else UNLABELLED
        return Row(sample_id, stored_image(image), label)


class IndexedSource(ImageSource):
    """Give any image at any time.

    Args:
        dataset: The images, not decoded.
        columns: Column of the images and, if there are labels, theirs.
        label_names: Names of the classes, in order; none without labels.
        name: What to call the data.
    """

    is_streaming = False

    def __init__(self, dataset: datasets.Dataset, columns: tuple[str, ...], label_names: tuple[str, ...], name: str):
        super().__init__(f"{name}, indexed", label_names, {name: len(dataset)})
        self.dataset = dataset
        self.columns = columns

    def row(self, sample_id: int) -> Row:
        """Return an image."""
        example = self.dataset[sample_id]
        return self._row(sample_id, *(field_of(example, column) for column in self.columns))

    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Yield images that lie side by side."""
        for sample_id in range(first, stop):
            yield self.row(sample_id)


class StreamingSource(ImageSource):
    """Give shards one by one, each opened by itself: a row group of a parquet file, or a tar.

    Args:
        dataset: The stream of all files, not decoded.
        columns: Column of the images and, if there are labels, theirs.
        label_names: Names of the classes, in order; none without labels.
        counts: Rows of the shards of each file, by the file's name.
        name: What to call the data.
    """

    is_streaming = True

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        columns: tuple[str, ...],
        label_names: tuple[str, ...],
        counts: dict[str, FileCounts],
        name: str,
    ):
        shards = {
            f"{file}, row group {group}" if len(sizes) > 1 else file: size
            for file, sizes in counts.items()
            for group, size in enumerate(sizes)
        }
        super().__init__(f"{name}, streamed from {len(shards)} shards", label_names, shards)
        self.dataset = dataset
        self.columns = columns
        self.num_files = len(counts)
        self.places = [
            (file, group, len(sizes)) for file, sizes in enumerate(counts.values()) for group in range(len(sizes))
        ]

    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Open a shard and yield some of its rows."""
        be_patient()
        file, group, num_groups = self.places[shard]
        stream = self.dataset.shard(self.num_files, file)
        if num_groups > 1:
            stream = stream.reshard().shard(num_groups, group)
        # not `iter(stream)`: inside a worker of a DataLoader that would give a part of the shard
        batches = stream.skip(first).iter(batch_size=1)
        sample_id = self.first_rows[shard] + first
        found = 0
        for found, batch in enumerate(islice(batches, stop - first), 1):
            example = {key: value[0] for key, value in batch.items()}
            yield self._row(sample_id + found - 1, *(field_of(example, column) for column in self.columns))
        if found != stop - first:
            raise SViTError(
                f"{self.shard_names[shard]} ends after {first + found} rows, but {self.shard_sizes[shard]} were "
                "counted; it changed, or the `index` is about something else."
            )


def open_source(options: DataOptions, split: str, *, labelled: bool = True) -> ImageSource:
    """Find the images and labels of a split, and count them.

    Args:
        options: Where they are.
        split: `train` or `eval`, for the split that `options` name as such.
        labelled: Whether labels are wanted; if not, there need not be any, none are read, and the only split that
            there is will do, whatever it is called.

    Raises:
        SViTError: If something is not there, not clear, or too expensive to find out.
    """
    location = find_location(options)
    name = _split_name(options, location, split, labelled)
    opener = _open_counted_stream if _is_streamed(options, location) else _open_indexed
    source: ImageSource = opener(options, location, name, labelled)
    source.split = name
    return source


def _split_name(options: DataOptions, location: Location, split: str, labelled: bool) -> str:
    wanted = [options.train_split] if split == "train" else [options.eval_split or ""]
    if split == "eval" and options.eval_split is None:
        wanted = list(EVALUATION_SPLITS)
        if not labelled and len(location.splits) == 1:
            # a model that is evaluated on what it was trained on should be told so; images to predict just lie there
            wanted += location.splits
    for name in wanted:
        if name in location.splits:
            return name
    argument = "train_split" if split == "train" else "eval_split"
    raise SViTError(
        f"{options.path!r} has no split {' or '.join(wanted)}, only {', '.join(location.splits)}; `{argument}` names "
        "another."
    )


def _is_streamed(options: DataOptions, location: Location) -> bool:
    if location.format == "imagefolder":
        if options.streaming:
            raise SViTError(
                f"`streaming` is True, but {options.path!r} is a folder of images: as a stream it would be one shard, "
                "class after class. Leave `streaming` out, or write shards with `svit-hf data shard`."
            )
        return False
    if options.streaming is not None:
        return options.streaming
    return location.num_bytes() > MAX_INDEXED_BYTES


def _open_indexed(options: DataOptions, location: Location, split: str, labelled: bool) -> IndexedSource:
    try:
        location.builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        raise SViTError(f"{options.path!r} cannot be read: {error.__cause__ or error}") from error
    dataset = location.builder.as_dataset(split)
    columns = find_columns(options, dataset.features, labelled)
    names = _names_of_indexed(options, location, split, dataset.features, columns[1]) if labelled else ()
    return IndexedSource(_bare(dataset, *columns), columns, names, f"{options.path}, split {split}")


def _names_of_indexed(
    options: DataOptions, location: Location, split: str, features: datasets.Features, label_column: str
) -> tuple[str, ...]:
    names = names_in_features(features, label_column)
    if names is None:
        labels = location.builder.as_dataset(reference_split(options, location, split))
        labels = labels.select_columns(_top_columns(label_column))
        names = names_of_labels((field_of(row, label_column) for row in labels), options.path)
    return names


def open_stream(
    options: DataOptions, location: Location, split: str, labelled: bool = True
) -> tuple[Any, tuple[str, ...]]:
    """Return the files of a split as a stream of the columns that count, and what these are called.

    These are the column of the images and, if labels are wanted, theirs. Nothing is counted, and labels are as they
    are stored.
    """
    be_patient()
    builder = location.builder
    stream = builder.as_streaming_dataset(split)
    if stream.features is None:
        stream = stream._resolve_features()
    columns = find_columns(options, stream.features, labelled)
    if isinstance(builder, Parquet):
        # read nothing else
        builder.config.columns = _top_columns(*columns)
        stream = builder.as_streaming_dataset(split)
    return _bare(stream, *columns), columns


def reference_split(options: DataOptions, location: Location, split: str) -> str:
    """Return the split whose labels say which classes there are, so that these have the same numbers in all splits."""
    return options.train_split if options.train_split in location.splits else split


def _open_counted_stream(options: DataOptions, location: Location, split: str, labelled: bool) -> StreamingSource:
    stream, columns = open_stream(options, location, split, labelled)
    index = SourceIndex.read(options.index) if options.index else None
    names = _names_of_stream(options, stream.features, columns[1], index) if labelled else ()
    files = location.files(split)
    if stream.num_shards != len(files):
        raise SViTError(
            f"{options.path!r} has {len(files)} files, but {stream.num_shards} shards: a shard cannot be opened by "
            "itself. Set `streaming` to False, or write shards with `svit-hf data shard`."
        )
    counted = dict(zip(names_of(files), _count(options, index, files, split), strict=True))
    return StreamingSource(stream, columns, names, counted, f"{options.path}, split {split}")


def _names_of_stream(
    options: DataOptions, features: datasets.Features, label_column: str, index: SourceIndex | None
) -> tuple[str, ...]:
    names = names_in_features(features, label_column) or (index.label_names if index else None)
    if names is None:
        raise SViTError(
            f"the column {label_column!r} of {options.path!r} does not say which classes there are, and a stream is "
            f"not searched for them. `svit-hf data inspect {options.path} --write-index FILE` does that once; give "
            "FILE as `index`. Or set `streaming` to False."
        )
    return names


def _count(options: DataOptions, index: SourceIndex | None, files: list[str], split: str) -> list[FileCounts]:
    if index is not None and options.index is not None:
        if split not in index.splits:
            raise SViTError(f"`index` is {options.index!r}, which has no split {split!r}.")
        return check_index(index.splits[split], files, split, options.index)
    if all(file.endswith(".parquet") for file in files):
        return count_parquet(files)
    if all(file.endswith(".tar") and "://" not in file for file in files):
        return [(count_tar(file),) for file in files]
    raise SViTError(
        f"the shards of {options.path!r} do not say how many rows they have without being read whole. `svit-hf data "
        f"inspect {options.path} --write-index FILE` reads them once; give FILE as `index`. Or set `streaming` to "
        "False."
    )


def find_columns(options: DataOptions, features: datasets.Features, labelled: bool) -> tuple[str, ...]:
    """Return the column of the images and, if labels are wanted, theirs."""
    image_column = find_image_column(features, options.image_column)
    return (image_column, find_label_column(features, options.label_column)) if labelled else (image_column,)


def _bare(dataset: Any, image_column: str, *label_columns: str) -> Any:
    """Leave the other columns out, and images as they are stored."""
    dataset = dataset.select_columns(_top_columns(image_column, *label_columns))
    if isinstance(dataset.features[image_column], datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset


def _top_columns(*columns: str) -> list[str]:
    """Return the columns without fields inside them."""
    return list(dict.fromkeys(column.split(".")[0] for column in columns))


def stored_image(image: Any) -> bytes | str | None:
    """Return the bytes of a stored image, or the path of the file that has them."""
    if isinstance(image, dict):
        return image.get("bytes") or image.get("path")
    return image


def be_patient() -> None:
    """Let `datasets` go on after a bad hour of a server.

    It has no other place for these settings; workers that are spawned set them anew.
    """
    datasets.config.STREAMING_READ_MAX_RETRIES = READ_RETRIES
    datasets.config.STREAMING_READ_RETRY_INTERVAL = READ_RETRY_SECONDS
