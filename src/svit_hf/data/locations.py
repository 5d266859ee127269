# SPDX-License-Identifier: Apache-2.0
"""From what a user gives as a path to files, their format and their splits."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from fsspec.core import url_to_fs
from PIL import Image

from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FORMATS_OF_FILES = ("parquet", "webdataset", "imagefolder")
SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz")}
# words in file names, and the split that they mean
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9/])({'|'.join(SPLIT_WORDS)})(?=$|[-._ 0-9/])", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """Hold what was found.

    Attributes:
        builder: The builder of `datasets` that reads it.
        format: parquet, webdataset, imagefolder, or hub for anything else.
        splits: Names of the splits.
    """

    builder: Any
    format: str
    splits: tuple[str, ...]

    def files(self, split: str) -> list[str]:
        """Return the files of a split, in order: one shard of the stream each."""
        return [str(file) for file in self.builder.config.data_files[split]]

    def num_bytes(self) -> float:
        """Return the size of the files of all splits; infinite if they are not local."""
        files = [file for split in self.builder.config.data_files or () for file in self.files(split)]
        if not files or any("://" in file for file in files):
            return float("inf")
        return sum(Path(file).stat().st_size for file in files)


def find_location(options: DataOptions) -> Location:
    """Find the files of a path.

    Raises:
        SViTError: If there are none, or it is not clear what they are.
    """
    if not options.path:
        raise SViTError("`path` is empty; it has to name a data set of the Hub, parquet files, tars or a folder.")
    root, files = ("", []) if options.format == "hub" else list_files(options.path)
    if not files:
        return _on_the_hub(options)
    format = options.format if options.format != "auto" else _format_of(files, options.path)
    files = [file for file in files if file.lower().endswith(_suffixes(format))]
    if not files:
        raise SViTError(f"`format` is {format!r}, but {options.path!r} holds no file of that kind.")
    splits = _image_folder_splits(files, root) if format == "imagefolder" else _splits(files, root)
    return Location(_build(options, format, data_files=splits), format, tuple(splits))


def list_files(path: str) -> tuple[str, list[str]]:
    """Return the folder and the files, in order, of a file, folder or glob; no file if it may be an id of the Hub.

    Raises:
        SViTError: If it is none of these.
    """
    if "://" in path and "*" not in path and path.lower().endswith(_suffixes("parquet") + _suffixes("webdataset")):
        # servers of plain files cannot list them
        return path.rpartition("/")[0], [path]
    try:
        filesystem, root = url_to_fs(path)
        is_glob = any(character in path for character in "*?[")
        found = filesystem.glob(root) if is_glob else filesystem.find(root) if filesystem.exists(root) else []
    # fsspec and the file systems behind it raise these for addresses, packages and rights that are missing
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise SViTError(f"`path` is {path!r}, which cannot be opened: {type(error).__name__}: {error}") from error
    if not found and ("://" in path or not HUB_ID.fullmatch(path)):
        raise SViTError(f"`path` is {path!r}, where there are no files.")
    if "://" in path:
        root, found = filesystem.unstrip_protocol(root), [filesystem.unstrip_protocol(file) for file in found]
    if is_glob or found == [root]:
        # a folder's name says nothing about files that were named themselves
        root = ""
    return root.rstrip("/"), sorted(found)


def _on_the_hub(options: DataOptions) -> Location:
    builder = _build(options, options.path, name=options.config_name)
    splits = tuple(map(str, builder.info.splits or builder.config.data_files or ()))
    return Location(builder, "imagefolder" if isinstance(builder, ImageFolder) else "hub", splits)


def _build(options: DataOptions, name_or_path: str, **arguments: Any) -> Any:
    try:
        return datasets.load_dataset_builder(name_or_path, **arguments)
    # of the Hub's client, of fsspec and of datasets itself, which has ValueErrors for what it cannot make sense of
    except (OSError, ValueError) as error:
        what = (
            "is no file or folder here, and was not found on the Hub" if options.path == name_or_path else "is broken"
        )
        raise SViTError(f"`path` is {options.path!r}, which {what}: {type(error).__name__}: {error}") from error


def _suffixes(format: str) -> tuple[str, ...]:
    if format == "imagefolder":
        # those that Pillow can open
        Image.init()
        return tuple(suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN)
    return SUFFIXES[format]


def _format_of(files: list[str], path: str) -> str:
    found = [format for format in FORMATS_OF_FILES if any(file.lower().endswith(_suffixes(format)) for file in files)]
    if len(found) == 1:
        return found[0]
    what = f"files of {' and '.join(found)}" if found else "neither parquet files, tars nor images"
    raise SViTError(f"`path` is {path!r}, which holds {what}; `format` says which of them to take.")


def _splits(files: list[str], root: str) -> dict[str, list[str]]:
    """Divide files by the words in their names; without any such word all are for training."""
    splits: dict[str, list[str]] = {}
    for file in files:
        words = SPLIT_WORD.findall(file.removeprefix(root) if root else file.rpartition("/")[2])
        splits.setdefault(SPLIT_WORDS[words[-1].lower()] if words else "", []).append(file)
    if "" in splits and len(splits) > 1:
        raise SViTError(
            f"some files tell their split by their names, others do not, such as {splits[''][0]!r}. Rename these, or "
            "give a glob that leaves them out."
        )
    return {name or "train": members for name, members in splits.items()}


def _image_folder_splits(files: list[str], root: str) -> dict[str, list[str]]:
    """Take the folders on top for splits if all are called so; otherwise all is for training.

    `datasets` would also look for such words in file names, and lose the pictures that are not called train or test.
    """
    tops = sorted({file.removeprefix(root).split("/")[1] for file in files})
    if any(top.lower() not in SPLIT_WORDS for top in tops):
        return {"train": [f"{root}/**"]}
    splits: dict[str, list[str]] = {}
    for top in tops:
        splits.setdefault(SPLIT_WORDS[top.lower()], []).append(f"{root}/{top}/**")
    return splits
