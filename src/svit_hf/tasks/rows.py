# SPDX-License-Identifier: Apache-2.0
"""Where the rows of a split come from: parquet files, and folders of pictures beside their annotations.

Every layout ends in the columns that the tasks read, so that a task has one way to read a row.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from svit_hf.data.decoding import readable_suffixes
from svit_hf.data.folders import SPLIT_WORDS, is_foreign
from svit_hf.errors import DataError
from svit_hf.tasks.objects import CATEGORY_FIELDS
from svit_hf.tasks.pictures import Origin
from svit_hf.tasks.task import Rows


# added to rows whose classes are numbers, where the data name them: what they mean, in the order of the numbers
CLASS_NAMES = "svit_class_names"
# where parquet files may state them, as paths of names in the features that `datasets` writes
CLASSES_OF_OBJECTS = [("objects", name) for name in CATEGORY_FIELDS]
# added to rows whose boxes were made here: how they are stored, whatever is said of the data
BOX_FORMAT = "svit_box_format"


class MissingSplitError(DataError):
    """Error about a folder that has no split of a name; it may have others."""


def split_names(split: str) -> list[str]:
    """Return a split's name, and the other words for it."""
    return [split, *(word for word, meaning in SPLIT_WORDS.items() if meaning == split != word)]


def no_rows(path: Path, split: str, layouts: str) -> MissingSplitError:
    """Return the error for a folder without a split."""
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return MissingSplitError(f"{str(path)!r} has no split {split!r}: it holds {found[:20]}; expected is {layouts}.")


def parquet_rows(path: Path, split: str, label_columns: Sequence[Sequence[str]] = ()) -> Rows | None:
    """Read `SPLIT.parquet`, or `SPLIT-*.parquet`, of a folder or its `data/`; None if there is no such file.

    In the features that `datasets` writes, the names of the classes may stand at `label_columns`, which are paths of
    names.

    Raises:
        DataError: If a file cannot be read, or pyarrow is not installed.
    """
    files = _first(
        sorted(folder.glob(pattern))
        for name in split_names(split)
        for folder in (path, path / "data")
        for pattern in (f"{name}.parquet", f"{name}-*.parquet")
    )
    if not files:
        return None
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{files[0]}: parquet files need pyarrow; install it with: pip install pyarrow") from error
    tables, origins, places = [], [], []
    labels: list[str] | None = None
    for number, file in enumerate(files):
        try:
            table = parquet.read_table(file, memory_map=True)
        except (ArrowException, OSError) as error:
            raise DataError(f"{file}: the file cannot be read: {error}") from error
        tables.append(table)
        found = _first(_label_names(table.schema.metadata or {}, column) for column in label_columns)
        if number and found != labels:
            raise DataError(f"{file}: its classes are {found}, those of {files[0].name} {labels}.")
        labels = found
        origins += [Origin(file.name, row) for row in range(table.num_rows)]
        places += [(number, row) for row in range(table.num_rows)]

    def load(index: int) -> Mapping[str, Any]:
        number, row = places[index]
        loaded: dict[str, Any] = tables[number].slice(row, 1).to_pylist()[0]
        return loaded if labels is None else loaded | {CLASS_NAMES: labels}

    return Rows(origins, load, labels, files)


def folder_pairs(path: Path, split: str, annotations: str) -> tuple[Path, Path] | None:
    """Find the folders `images` and `annotations` of a split.

    They are looked for as SPLIT/images, images/SPLIT, and, for the split "train" of a folder that has no splits,
    images.
    """
    candidates = [(path / name / "images", path / name / annotations) for name in split_names(split)]
    candidates += [(path / "images" / name, path / annotations / name) for name in split_names(split)]
    if split == "train":
        candidates.append((path / "images", path / annotations))
    return _first(pair for pair in candidates if pair[0].is_dir() and pair[1].is_dir())


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder, in order; hidden files and others are passed over.

    Raises:
        DataError: If there is none, or two have the same name without suffix.
    """
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in readable_suffixes() and not is_foreign(file.name)
    )
    if not files:
        raise DataError(
            f"{str(folder)!r} has no pictures; expected are files that end in {sorted(readable_suffixes())}."
        )
    for one, other in pairwise(files):
        if one.stem == other.stem:
            raise DataError(f"{str(folder)!r} has both {one.name!r} and {other.name!r}, with one annotation for both.")
    return files


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: the file cannot be read as JSON: {error}") from error


def read_labels(path: Path) -> list[str] | None:
    """Return the names of the classes from `classes.txt` (one per line) or `data.yaml`; None if there is neither.

    Raises:
        DataError: If the file cannot be read.
    """
    classes = path / "classes.txt"
    if classes.is_file():
        return [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    for file in (path / "data.yaml", path / "data.yml"):
        if not file.is_file():
            continue
        try:
            names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
            return [str(names[number]) for number in range(len(names))]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise DataError(f"{file}: the file has no list `names` of classes: {error!r}") from error
    return None


def _label_names(metadata: Mapping[bytes, bytes], column: Sequence[str]) -> list[str] | None:
    """Return the names of a `ClassLabel`, from what `datasets` writes into a parquet file."""
    try:
        node: Any = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        for name in column:
            node = node.get(name)
        while "names" not in node and "feature" in node:
            node = node["feature"]
        return list(node["names"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _first(candidates: Iterable[Any]) -> Any:
    return next(filter(None, candidates), None)
