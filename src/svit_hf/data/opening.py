# SPDX-License-Identifier: Apache-2.0
"""From options to a source: which split, which columns, which classes, indexed or as a stream, and how many rows."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet

from svit_hf.data.columns import (
    field_of,
    find_columns,
    names_in_features,
    names_of_labels,
    remarks_on_names,
    require_classes,
    top_columns,
)
from svit_hf.data.counts import FileCounts, Footer, SourceIndex, check_index, count_tar, names_of, read_footers
from svit_hf.data.locations import Location, find_location
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import (
    ColumnSource,
    FolderSource,
    ImageSource,
    IndexedSource,
    SelectedSource,
    StreamingSource,
    TableSource,
    explain_reading,
    set_read_retries,
)
from svit_hf.errors import SViTError


EVALUATION_SPLITS = ("validation", "valid", "val", "test")
# local files up to this size are copied into an index, from which any image can be read at any time
MAX_INDEXED_BYTES = 2 << 30

# from the columns that there are to those that are read, that of the images first
ChooseColumns = Callable[[datasets.Features], tuple[str, ...]]


def open_source(options: DataOptions, split: str, *, labelled: bool = True) -> ImageSource:
    """Find the images and labels of a split, and count them.

    Classes are matched by name: with those of the training split, if there is one, over splits and shards.

    Args:
        options: Where they are.
        split: `train` or `eval`, for the split that `options` name as such.
        labelled: Whether labels are wanted; if not, there need not be any, none are read, and the only split that
            there is will do, whatever it is called.

    Raises:
        SViTError: If something is not there, not clear, or too expensive to find out.
        DataError: If files are damaged, or labels are none of the classes.
    """
    location = find_location(options)
    if options.validation_share and labelled:
        return _open_share(options, location, split)
    return _open_split(options, location, split_name(options, location, split, labelled), labelled)


def _open_split(options: DataOptions, location: Location, split: str, labelled: bool) -> ImageSource:
    source: ImageSource
    location.require_rows(split, options.path)
    if location.folder is not None:
        source = _open_folder(options, location, split, labelled)
    else:
        source = _open_columns(options, location, split, labelled)
    if source.num_samples == 0:
        raise SViTError(f"the split {split!r} of {options.path!r} has no images.")
    source.split, source.limits = split, options.limits
    source.remarks = (*location.remarks(), *remarks_on_names(source.label_names))
    return source


def _open_share(options: DataOptions, location: Location, split: str) -> ImageSource:
    """Open the part of the training split that is kept for validation, or the rest of it."""
    others = [name for name in EVALUATION_SPLITS[:3] if name in location.splits]
    if others:
        raise SViTError(
            f"`validation_share` is {options.validation_share}, but {options.path!r} has a split {others[0]!r}; leave "
            "`validation_share` out, or name the training files alone."
        )
    whole = _open_split(options, location, split_name(options, location, "train", True), True)
    if not isinstance(whole, IndexedSource):
        raise SViTError(
            f"`validation_share` is {options.validation_share}, but {options.path!r} is read as a stream, of which no "
            "part can be kept. Set `streaming` to False, or write a validation split."
        )
    kept = held_out(labels_of(whole), options.validation_share, options.validation_seed)
    is_kept = set(kept)
    rest = [sample_id for sample_id in range(whole.num_samples) if sample_id not in is_kept]
    chosen, name = (rest, "train") if split == "train" else (kept, "validation")
    if not chosen:
        raise SViTError(
            f"`validation_share` is {options.validation_share}, which leaves no image for {name} of "
            f"{whole.num_samples}."
        )
    words = "the rest" if split == "train" else f"{options.validation_share:.0%}, kept for validation"
    source = SelectedSource(whole, chosen, f"{options.path}, split {whole.split}, {words}")
    source.split = name
    return source


def held_out(labels: Sequence[Hashable], share: float, seed: int) -> list[int]:
    """Return the images that are kept for validation: the share of each class, rounded, but never all of it.

    An image's chance depends on the seed and its place alone, so that nothing is remembered.

    Args:
        labels: Class of each image; images with the same labels are a class, if they may have several.
        share: Share to keep.
        seed: Another seed keeps other images.
    """
    by_class: dict[Hashable, list[int]] = {}
    for sample_id, label in enumerate(labels):
        by_class.setdefault(label, []).append(sample_id)
    kept: list[int] = []
    for members in by_class.values():
        count = min(len(members) - 1, max(1, round(share * len(members))))
        kept += sorted(members, key=lambda sample_id: _draw(seed, sample_id))[:count]
    return sorted(kept)


def _draw(seed: int, sample_id: int) -> bytes:
    return hashlib.blake2b(f"{seed} {sample_id}".encode(), digest_size=8).digest()


def labels_of(source: IndexedSource) -> list[int | tuple[int, ...]]:
    """Return the class of each image, or its labels if it may have several, without reading the images."""
    if isinstance(source, SelectedSource):
        whole = labels_of(source.source)
        return [whole[sample_id] for sample_id in source.sample_ids]
    if isinstance(source, TableSource):
        return source.labels()
    assert isinstance(source, FolderSource)
    return list(source.labels)


def split_name(options: DataOptions, location: Location, split: str, labelled: bool = True) -> str:
    """Return the name of the split that options name as that for training ("train") or evaluation ("eval").

    Raises:
        SViTError: If there is none of it.
    """
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
    hint = "" if split == "train" else "; `validation_share` keeps a part of the training split"
    raise SViTError(
        f"{options.path!r} has no split {' or '.join(wanted)}, only {', '.join(location.splits)}; `{argument}` names "
        f"another{hint}."
    )


def is_streamed(options: DataOptions, location: Location) -> bool:
    """Return whether files are read in passing: as it is said, or if they are large or elsewhere.

    Raises:
        SViTError: If that is asked for where it cannot be.
    """
    if location.format == "imagefolder":
        require_indexed(options)
        return False
    if options.streaming is not None:
        return options.streaming
    return location.num_bytes() > MAX_INDEXED_BYTES


def require_indexed(options: DataOptions) -> None:
    """Refuse to stream a folder of images.

    Raises:
        SViTError: If that is asked for.
    """
    if options.streaming:
        raise SViTError(
            f"`streaming` is True, but {options.path!r} is a folder of images, which as a stream would be one shard, "
            "in order. Leave `streaming` out, or write shards with `svit-hf data shard`."
        )


def reference_split(options: DataOptions, location: Location, split: str) -> str:
    """Return the split whose labels say which classes there are, so that these have the same numbers in all splits."""
    is_there = options.train_split in location.splits and options.train_split not in location.empty_splits
    return options.train_split if is_there else split


# folders


def _open_folder(options: DataOptions, location: Location, split: str, labelled: bool) -> FolderSource:
    require_indexed(options)
    if options.multi_label and labelled:
        raise SViTError(
            f"`multi_label` is True, but {options.path!r} has a folder for each class, where an image has one; "
            "`metadata.jsonl` beside the images can list several labels."
        )
    assert location.folder is not None
    folder = location.folder
    images = folder.splits[split]
    names: tuple[str, ...] = ()
    if labelled:
        reference = reference_split(options, location, split)
        names = folder.splits[reference].class_names
        for name in {reference, split}:
            if not folder.splits[name].classes:
                raise SViTError(
                    f"the images of the split {name!r} of {options.path!r}, such as {folder.splits[name].files[0]!r}, "
                    "are in no folder of a class; labels are wanted, and each class has to be a folder."
                )
        require_classes(images.class_names, names, f"the split {split!r} of {options.path!r}")
    return FolderSource(str(folder.root), images, names, f"{options.path}, split {split}")


# tables and streams


class OpenedColumns(NamedTuple):
    """Columns of a split, as a table on this machine or as a stream.

    Attributes:
        dataset: Table or stream of `datasets`, not decoded; of a stream, each file is a shard.
        columns: The columns that are read.
        is_streaming: Whether it is a stream.
        counts: Rows of the shards of each file, by its name.
        footers: What the footers of parquet files say; none of other files.
        has_files: Whether images are files that were put here for that.
    """

    dataset: Any
    columns: tuple[str, ...]
    is_streaming: bool
    counts: dict[str, FileCounts]
    footers: list[Footer]
    has_files: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return what a `ColumnSource` is told of the files."""
        file_sizes = [footer.num_bytes for footer in self.footers]
        return {"counts": self.counts, "file_sizes": file_sizes, "has_files": self.has_files}


def open_columns(options: DataOptions, location: Location, split: str, choose: ChooseColumns) -> OpenedColumns:
    """Open columns of a split: as a stream if that is said, or if files are large or elsewhere.

    Raises:
        SViTError: If a file of a stream is not a shard that can be opened by itself, or its rows cannot be counted
            without reading everything.
    """
    if is_streamed(options, location):
        return _open_stream(options, location, split, choose)
    with explain_reading(options.path):
        footers = footers_of(location, split)
        location.builder.download_and_prepare()
        table = location.builder.as_dataset(split)
        columns = choose(table.features)
    names = names_of(location.files(split)) if footers else [f"{options.path}, split {split}"]
    rows = [sum(footer.rows) for footer in footers] or [len(table)]
    counts: dict[str, FileCounts] = {name: (count,) for name, count in zip(names, rows, strict=True)}
    has_files = location.format == "imagefolder"
    return OpenedColumns(_bare(table, *columns), columns, False, counts, footers, has_files)


def _open_stream(options: DataOptions, location: Location, split: str, choose: ChooseColumns) -> OpenedColumns:
    with explain_reading(options.path):
        stream, columns = stream_columns(options, location, split, choose)
    files = location.files(split)
    if stream.num_shards != len(files):
        raise SViTError(
            f"{options.path!r} has {len(files)} files, but {stream.num_shards} shards: a shard cannot be opened by "
            "itself. Set `streaming` to False, or write shards with `svit-hf data shard`."
        )
    is_parquet = all(file.endswith(".parquet") for file in files)
    footers = read_footers(files) if is_parquet and not options.index else []
    counts = [footer.rows for footer in footers] or _count(options, files, split)
    return OpenedColumns(stream, columns, True, dict(zip(names_of(files), counts, strict=True)), footers)


def stream_columns(
    options: DataOptions, location: Location, split: str, choose: ChooseColumns
) -> tuple[Any, tuple[str, ...]]:
    """Return the files of a split as a stream of the columns that are chosen, and what these are called.

    Nothing is counted, and labels are as they are stored.
    """
    set_read_retries()
    builder = location.builder
    stream = builder.as_streaming_dataset(split)
    if stream.features is None:
        stream = stream._resolve_features()
    if stream.features is None:
        raise SViTError(f"the split {split!r} of {options.path!r} has no images.")
    columns = choose(stream.features)
    if isinstance(builder, Parquet):
        # read nothing else
        builder.config.columns = top_columns(stream.features, *columns)
        stream = builder.as_streaming_dataset(split)
    return _bare(stream, *columns), columns


def _open_columns(options: DataOptions, location: Location, split: str, labelled: bool) -> ColumnSource:
    opened = open_columns(options, location, split, partial(find_columns, options=options, labelled=labelled))
    names: tuple[str, ...] = ()
    stored = None
    if labelled:
        names, stored = _class_names(options, location, split, opened)
    kind = StreamingSource if opened.is_streaming else TableSource
    source = kind(
        opened.dataset,
        opened.columns,
        names,
        f"{options.path}, split {split}",
        stored_names=stored,
        **opened.arguments(),
    )
    source.is_multi_label = labelled and options.multi_label
    if labelled and isinstance(source, TableSource):
        # a label that is no class is better found now than in the middle of a run
        source.labels()
    return source


def _class_names(
    options: DataOptions, location: Location, split: str, opened: OpenedColumns
) -> tuple[tuple[str, ...], list[tuple[str, ...] | None]]:
    """Return the names of the classes, and what integers stand for in each file."""
    label_column = opened.columns[1]
    of_split = names_in_features(opened.dataset.features, label_column)
    # the files of a stream may leave the names to the card of the data set
    otherwise = of_split if opened.is_streaming else None
    stored = [names_of_footer(footer, options) or otherwise for footer in opened.footers]
    stored = stored or [of_split] * len(opened.counts)
    reference = reference_split(options, location, split)
    stated = None
    if footers := footers_of(location, reference):
        stated = names_of_footer(footers[0], options)
    names = stated or of_split
    if names is None and opened.is_streaming:
        names = _names_of_index(options, label_column)
    elif names is None:
        names = _names_by_reading(options, location, reference, label_column)
    for of_file in {of_file for of_file in stored if of_file is not None}:
        require_classes(of_file, names, f"a file of the split {split!r} of {options.path!r}")
    return names, stored


def footers_of(location: Location, split: str) -> list[Footer]:
    """Return the footers of parquet files that were named as such; none for other data."""
    return read_footers(location.files(split)) if location.format == "parquet" else []


def names_of_footer(footer: Footer, options: DataOptions) -> tuple[str, ...] | None:
    """Return the names that integers stand for in a parquet file, if it says so."""
    if footer.features is None:
        return None
    (_, label_column) = find_columns(footer.features, options, True)
    return names_in_features(footer.features, label_column)


def _names_by_reading(options: DataOptions, location: Location, reference: str, label_column: str) -> tuple[str, ...]:
    table = location.builder.as_dataset(reference)
    table = table.select_columns(top_columns(table.features, label_column))
    source = f"the split {reference!r} of {options.path!r}"
    if not len(table):
        raise SViTError(f"{source} has no images.")
    labels = (field_of(row, label_column) for row in table)
    if options.multi_label:
        labels = (label for several in labels for label in several or ())
    return names_of_labels(labels, source)


def _names_of_index(options: DataOptions, label_column: str) -> tuple[str, ...]:
    names = SourceIndex.read(options.index).label_names if options.index else ()
    if not names:
        raise SViTError(
            f"the column {label_column!r} of {options.path!r} does not say which classes there are, and a stream is "
            f"not searched for them. `svit-hf data inspect {options.path} --write-index FILE` does that once; give "
            "FILE as `index`. Or set `streaming` to False."
        )
    return names


def _count(options: DataOptions, files: list[str], split: str) -> list[FileCounts]:
    if options.index:
        index = SourceIndex.read(options.index)
        if split not in index.splits:
            raise SViTError(f"`index` is {options.index!r}, which has no split {split!r}.")
        return check_index(index.splits[split], files, split, options.index)
    if all(file.endswith(".tar") and "://" not in file for file in files):
        return [(count_tar(file),) for file in files]
    raise SViTError(
        f"the shards of {options.path!r} do not say how many rows they have without being read whole. `svit-hf data "
        f"inspect {options.path} --write-index FILE` reads them once; give FILE as `index`. Or set `streaming` to "
        "False."
    )


def _bare(dataset: Any, *columns: str) -> Any:
    """Leave the other columns out, and images as they are stored."""
    dataset = dataset.select_columns(top_columns(dataset.features, *columns))
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset
