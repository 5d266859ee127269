# SPDX-License-Identifier: Apache-2.0
"""From options to the annotated pictures of a split: in folders, in tables and shards, here or on the Hub."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from svit_hf.data.columns import element_of, find_columns
from svit_hf.data.locations import Location, find_location
from svit_hf.data.opening import MAX_INDEXED_BYTES, footers_of, open_columns, split_name
from svit_hf.data.options import DataOptions
from svit_hf.errors import DataError, SViTError, listed
from svit_hf.tasks.objects import CATEGORY_FIELDS
from svit_hf.tasks.options import IS_STORED
from svit_hf.tasks.rows import MissingSplitError, read_labels
from svit_hf.tasks.sources import RowsSource, TaskSource, TaskStream, TaskTable
from svit_hf.tasks.task import DenseTask


# files of folders that no task has a layout for, and `svit_hf.data` knows
OTHER_FILES = ("*.tar", "*.tar.gz", "*.tgz", "metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class FoundSplit:
    """Annotated pictures that were found; the task that reads them may follow from their classes.

    Attributes:
        name: Name of the split.
        labels: Names of the classes, where the data state them.
        make: Function of the task to what a loader reads.
        remarks: What a user should know before using it.
    """

    name: str
    labels: list[str] | None
    make: Callable[[DenseTask], TaskSource]
    remarks: tuple[str, ...] = ()

    def source(self, task: DenseTask) -> TaskSource:
        """Return what a loader reads."""
        made = self.make(task)
        made.split, made.remarks = self.name, self.remarks
        return made


def find_split(kind: type[DenseTask], options: DataOptions, split: str) -> FoundSplit:
    """Find the pictures and annotations of a split.

    Args:
        kind: The task.
        options: Where they are.
        split: `train` or `eval`, for the split that `options` name as such.

    Raises:
        SViTError: If something is not there, not clear, or too expensive to find out.
        DataError: If files are damaged.
    """
    if not _is_folder_of_task(options):
        return _find_by_columns(kind, options, split)
    path = Path(options.path)
    names: tuple[str, ...] = (options.train_split,)
    if split == "eval":
        names = (options.eval_split,) if options.eval_split else ("validation", "test")
    missing: MissingSplitError | None = None
    for name in names:
        try:
            return _find_in_folder(kind, options, name)
        except MissingSplitError as error:
            missing = error
    if missing is not None and not any(next(path.rglob(pattern), None) for pattern in OTHER_FILES):
        raise missing
    return _find_by_columns(kind, options, split)


def find_splits(kind: type[DenseTask], options: DataOptions) -> list[FoundSplit]:
    """Find the pictures and annotations of all splits; the arguments are as above."""
    found: list[FoundSplit] = []
    for name in ("train", "validation", "test") if _is_folder_of_task(options) else ():
        with suppress(MissingSplitError):
            found.append(_find_in_folder(kind, options, name))
    return found or [
        find_split(kind, replace(options, eval_split=name), "eval") for name in find_location(options).splits
    ]


def _find_in_folder(kind: type[DenseTask], options: DataOptions, split: str) -> FoundSplit:
    rows = kind.find_rows(Path(options.path), split)
    return FoundSplit(split, rows.labels, partial(RowsSource, rows, name=f"{options.path}, split {split}"))


def _is_folder_of_task(options: DataOptions) -> bool:
    """Whether a path is a folder in whose layouts the task looks by itself, and reads everything at any time."""
    path = Path(options.path)
    says_more = options.streaming or options.format != "auto" or options.image_column or options.label_column
    if says_more or not path.is_dir():
        return False
    files = [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    return options.streaming is False or sum(file.stat().st_size for file in files) <= MAX_INDEXED_BYTES


def _find_by_columns(kind: type[DenseTask], options: DataOptions, split: str) -> FoundSplit:
    location = find_location(options)
    name = split_name(options, location, split)
    location.require_rows(name, options.path)
    if location.folder is not None:
        given = {name: getattr(options, name) for name in ("streaming", "image_column", "label_column", "format")}
        argument, value = next((argument, value) for argument, value in given.items() if value)
        raise SViTError(
            f"`{argument}` is {value!r}, but {options.path!r} is a folder of pictures, which has no columns and no "
            f"shards. Leave it out, or write shards with `svit-hf data shard --task {kind.name}`."
        )

    def choose(features: datasets.Features) -> tuple[str, ...]:
        return tuple(_columns(kind, options, features).values())

    opened = open_columns(options, location, name, choose)
    columns = _columns(kind, options, opened.dataset.features)
    labels = _labels(options, columns, opened.dataset.features, location, name)
    source_class = TaskStream if opened.is_streaming else TaskTable
    what = f"{options.path}, split {name}"

    def make(task: DenseTask) -> TaskSource:
        return source_class(task, columns, labels, opened.dataset, what, **opened.arguments())

    return FoundSplit(name, labels, make, tuple(location.remarks()))


def _columns(kind: type[DenseTask], options: DataOptions, features: datasets.Features) -> dict[str, str]:
    """Return the columns of a table, by the names that the task has for them.

    Raises:
        SViTError: If the picture, or every kind of annotation is missing.
    """
    is_clear = "image" in features and not options.image_column
    columns = {"image": "image" if is_clear else find_columns(features, options, labelled=False)[0]}
    if named := options.label_column:
        if named.split(".")[0] not in features:
            raise SViTError(f"`label_column` is {named!r}, which is no column; there are {listed(features)}.")
        is_mask = isinstance(features.get(named), datasets.Image)
        role = "mask" if is_mask and "mask" in kind.annotation_columns else kind.annotation_columns[-1]
        columns[role] = named
    for role in (*kind.annotation_columns, *kind.other_columns, IS_STORED):
        # a file of a tar is named NAME.mask.png, for example
        found = [name for name in features if role in (name, name.split(".")[0])]
        if len(found) == 1:
            columns.setdefault(role, found[0])
    if not columns.keys() & {*kind.annotation_columns}:
        raise SViTError(
            f"`label_column` has to name the annotations: {options.path!r} has no column "
            f"{' or '.join(map(repr, kind.annotation_columns))}, only {listed(features)}."
        )
    return columns


def _labels(
    options: DataOptions, columns: Mapping[str, str], features: datasets.Features, location: Location, split: str
) -> list[str] | None:
    """Return the names of the classes, which all parquet files that say something of objects have to agree on.

    Raises:
        DataError: If two do not.
    """
    if "objects" not in columns:
        return read_labels(Path(options.path)) if Path(options.path).is_dir() else None
    found = [footer.features for footer in footers_of(location, split) if footer.features is not None] or [features]
    labels = [_names_in(of_file, columns["objects"]) for of_file in found]
    for other in labels:
        if other != labels[0]:
            raise DataError(f"the split {split!r} has files whose classes are {labels[0]}, and {other}.")
    return labels[0]


def _names_in(features: datasets.Features, column: str) -> list[str] | None:
    node: Any = features
    for part in (column,) if column in features else column.split("."):
        node = element_of(node[part])
    found = (element_of(node[name]) for name in CATEGORY_FIELDS if isinstance(node, Mapping) and name in node)
    return next((list(names.names) for names in found if isinstance(names, datasets.ClassLabel)), None)
