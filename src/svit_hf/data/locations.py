# SPDX-License-Identifier: Apache-2.0
"""From what a user gives as a path to files, their format and their splits."""

import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as ImageFolderBuilder
from fsspec.core import url_to_fs

from svit_hf.data.counts import read_footer
from svit_hf.data.decoding import readable_suffixes
from svit_hf.data.folders import SPLIT_WORDS, ImageFolder, Parts, arrange_images, is_foreign, list_folder
from svit_hf.data.options import DataOptions
from svit_hf.errors import DataError, SViTError, listed


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FORMATS_OF_FILES = ("parquet", "webdataset", "imagefolder")
SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz")}
SPLIT_WORD = re.compile(rf"(?:^|[-._ 0-9/])({'|'.join(SPLIT_WORDS)})(?=$|[-._ 0-9/])", re.IGNORECASE)
# tables beside images that say more about them than folders do
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Location:
    """Where images are.

    Attributes:
        format: parquet, webdataset, imagefolder, or hub for anything else.
        splits: Names of the splits.
        builder: The builder of `datasets` that reads it; none for a local folder of images.
        folder: What a local folder of images holds.
        unused: How many files are not used, by the reason.
        empty_splits: Splits whose files have no rows, which `builder` does not know.
    """

    format: str
    splits: tuple[str, ...]
    builder: Any = None
    folder: ImageFolder | None = None
    unused: Counter[str] = field(default_factory=Counter)
    empty_splits: frozenset[str] = frozenset()

    def remarks(self) -> list[str]:
        """Return a line for each reason why files are not used."""
        return [f"not used: {reason} ({count})" for reason, count in sorted(self.unused.items())]

    def require_rows(self, split: str, path: str) -> None:
        """Refuse a split without rows.

        Raises:
            SViTError: If it is one; `path` is where it is.
        """
        if split not in self.empty_splits:
            return
        text = f"the split {split!r} of {path!r} has no images"
        if self.format == "imagefolder":
            raise DataError(f"{text}: the table beside them has no rows. Write one for each picture, or remove it.")
        raise SViTError(f"{text}.")

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
    root, files, unused = ("", [], Counter[str]()) if options.format == "hub" else list_files(options.path)
    if not files:
        if unused:
            raise SViTError(f"`path` is {options.path!r}, where there are only {listed(unused)}.")
        return _on_the_hub(options)
    format = options.format if options.format != "auto" else _format_of(files, options.path)
    suffixes = readable_suffixes() if format == "imagefolder" else SUFFIXES[format]
    wanted = [file for file in files if file.lower().endswith(tuple(suffixes))]
    if not wanted:
        raise SViTError(f"`format` is {format!r}, but {options.path!r} holds no file of that kind.")
    if format == "imagefolder":
        return _image_folder(options, root, files, unused)
    unused[f"files that are not {format}"] += len(files) - len(wanted)
    splits = _splits(wanted, root)
    if format == "parquet" and not any("://" in file for file in wanted):
        # `datasets` stumbles over files without rows
        filled = {split: [file for file in files if sum(read_footer(file).rows)] for split, files in splits.items()}
        unused["parquet files without rows"] += len(wanted) - sum(map(len, filled.values()))
    else:
        filled = splits
    empty = frozenset(split for split, files in filled.items() if not files)
    if len(empty) == len(splits):
        raise SViTError(f"`path` is {options.path!r}, which has no images: its files have no rows.")
    data_files = {split: files for split, files in filled.items() if files}
    builder = _build(options, format, data_files=data_files)
    return Location(format, tuple(splits), builder, unused=+unused, empty_splits=empty)


def list_files(path: str) -> tuple[str, list[str], Counter[str]]:
    """Return the folder and the files, in order, of a file, folder or glob; no file if it may be an id of the Hub.

    A path that exists is taken as it is, whatever brackets and stars are in it.

    Returns:
        The folder, empty where files were named themselves; the files; and what was passed over, by the reason.

    Raises:
        SViTError: If it is none of these.
    """
    if "://" not in path and Path(path).exists():
        local = Path(path)
        if local.is_file():
            return "", [str(local.absolute())], Counter()
        # not resolved: links keep the names that the user gave them
        root = local.absolute()
        files, unused = list_folder(root)
        return str(root).rstrip("/"), ["/".join((str(root).rstrip("/"), *parts)) for parts in files], unused
    if "://" in path and "*" not in path and path.lower().endswith(SUFFIXES["parquet"] + SUFFIXES["webdataset"]):
        # servers of plain files cannot list them
        return path.rpartition("/")[0], [path], Counter()
    return _list_by_fsspec(path)


def _list_by_fsspec(path: str) -> tuple[str, list[str], Counter[str]]:
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
    root = root.rstrip("/")
    kept = [file for file in sorted(found) if not any(map(is_foreign, file.removeprefix(root).split("/")[1:]))]
    unused = Counter({"hidden files and files of the system": len(found) - len(kept)})
    return root, kept, +unused


def _on_the_hub(options: DataOptions) -> Location:
    builder = _build(options, options.path, name=options.config_name)
    splits = tuple(map(str, builder.info.splits or builder.config.data_files or ()))
    return Location("imagefolder" if isinstance(builder, ImageFolderBuilder) else "hub", splits, builder)


def _build(options: DataOptions, name_or_path: str, **arguments: Any) -> Any:
    try:
        return datasets.load_dataset_builder(name_or_path, **arguments)
    # of the Hub's client, of fsspec and of datasets itself, which has ValueErrors for what it cannot make sense of
    except (OSError, ValueError, tarfile.TarError) as error:
        what = (
            "is no file or folder here, and was not found on the Hub" if options.path == name_or_path else "is broken"
        )
        raise SViTError(f"`path` is {options.path!r}, which {what}: {type(error).__name__}: {error}") from error


def _format_of(files: list[str], path: str) -> str:
    suffixes = {**SUFFIXES, "imagefolder": tuple(readable_suffixes())}
    tables = [file for file in files if file.rpartition("/")[2] in METADATA_FILES]
    others = [file for file in files if file not in tables]
    found = [name for name in FORMATS_OF_FILES if any(file.lower().endswith(suffixes[name]) for file in others)]
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


def _image_folder(options: DataOptions, root: str, files: list[str], unused: Counter[str]) -> Location:
    if not root:
        raise SViTError(
            f"`path` is {options.path!r}, which names {len(files)} files and no folder: the classes of images are "
            "told by the folders that they are in. Name the folder around these."
        )
    parts: list[Parts] = [tuple(file.removeprefix(root).strip("/").split("/")) for file in files]
    folder = arrange_images(Path(root), parts, unused)
    if not folder.splits:
        raise SViTError(f"`path` is {options.path!r}, where there are no images, only {listed(folder.unused)}.")
    tables = [names for names in parts if names[-1] in METADATA_FILES]
    if "://" not in options.path and not tables:
        return Location("imagefolder", tuple(folder.splits), folder=folder, unused=folder.unused)
    # `datasets` downloads files and reads tables; without a table it takes the innermost folder for the class
    data_files = {}
    for split, images in folder.splits.items():
        nested = [
            path for path, name in zip(images.files, images.classes, strict=False) if path.split("/")[-2] != name
        ]
        if nested and not tables:
            raise SViTError(f"`path` is {options.path!r}, where {nested[0]} is not in the folder of its class itself.")
        around = images.files[0].split("/")[0]
        own = ["/".join(names) for names in tables if len(names) == 1 or names[0] == around or len(folder.splits) == 1]
        if not own or any(_has_rows(f"{root}/{table}") for table in own):
            data_files[split] = [f"{root}/{path}" for path in (*images.files, *own)]
    if not data_files:
        names = listed("/".join(names) for names in tables)
        raise DataError(
            f"`path` is {options.path!r}, where {names} has no rows. Write one for each picture, or remove it."
        )
    builder = _build(options, "imagefolder", data_files=data_files)
    empty = frozenset(folder.splits.keys() - data_files.keys())
    return Location("imagefolder", tuple(folder.splits), builder, unused=folder.unused, empty_splits=empty)


def _has_rows(table: str) -> bool:
    if table.endswith(".parquet"):
        return sum(read_footer(table).rows) > 0
    with fsspec.open(table, "rt", encoding="utf-8", errors="replace") as lines:
        num_lines = sum(bool(line.strip()) for line in islice(lines, 1000))
    # of CSV, the first has the names of the columns
    return num_lines > table.endswith(".csv")
