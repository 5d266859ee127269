# SPDX-License-Identifier: Apache-2.0
"""How many rows the shards of a stream have, without reading the images: footers, tar headers, or an index file."""

import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq

from svit_hf.errors import DataError, SViTError
from svit_hf.files import write_text
from svit_hf.urls import without_credentials


INDEX_VERSION = 1
NUM_THREADS = 16

# rows of each shard of a file: of its row groups, or one number
FileCounts = tuple[int, ...]


@dataclass(frozen=True)
class SourceIndex:
    """What an index file says.

    Attributes:
        label_names: Names of the classes, in order.
        splits: Of each split, the rows of the shards of each file, by the file's name.
    """

    label_names: tuple[str, ...]
    splits: dict[str, dict[str, FileCounts]]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "version": INDEX_VERSION,
            "label_names": self.label_names,
            "splits": {name: {"files": files} for name, files in self.splits.items()},
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: str) -> "SourceIndex":
        """Read a file that `write` wrote.

        Raises:
            SViTError: If it cannot be read, or is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["version"] != INDEX_VERSION:
                raise ValueError(f"its version is {content['version']}, not {INDEX_VERSION}")
            splits = {
                name: {file: tuple(map(int, counts)) for file, counts in split["files"].items()}
                for name, split in content["splits"].items()
            }
            return cls(tuple(content["label_names"]), splits)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SViTError(
                f"`index` is {path!r}, which is no index of a data set ({type(error).__name__}: {error}); `svit-hf "
                "data inspect SOURCE --write-index FILE` makes one."
            ) from error


def names_of(files: list[str]) -> list[str]:
    """Name files by what is left of their paths without the folder that they have in common.

    So an index fits wherever the files are: a revision of the Hub, a mirror, another mount. Signatures are left out.
    """
    folders = [file.split("/")[:-1] for file in files]
    common = 0
    while all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return [without_credentials("/".join(file.split("/")[common:])) for file in files]


def check_index(index: dict[str, FileCounts], files: list[str], split: str, path: str) -> list[FileCounts]:
    """Return the counts of files in their order.

    Raises:
        SViTError: If the index is about other files.
    """
    names = names_of(files)
    if different := sorted(set(names) ^ set(index)):
        shown = ", ".join(different[:3])
        raise SViTError(
            f"`index` is {path!r}, which does not fit the split {split!r}: {len(different)} files are only in one of "
            f"them, such as {shown}. Make it anew with `svit-hf data inspect SOURCE --write-index FILE`."
        )
    return [index[name] for name in names]


@dataclass(frozen=True)
class Footer:
    """What the footer of a parquet file says.

    Attributes:
        rows: Rows of each row group.
        num_bytes: Size of the file; 0 where it is remote.
        features: Columns and their features, as `datasets` writes them down; none if somebody else wrote the file.
    """

    rows: FileCounts
    num_bytes: int
    features: datasets.Features | None


def read_footers(files: list[str]) -> list[Footer]:
    """Return what the footers of parquet files say, reading several at a time."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(read_footer, files))


def read_footer(file: str) -> Footer:
    """Return what the footer of a parquet file says, local or remote; one of a local file is read again if it changes.

    Raises:
        DataError: If it is no parquet file, or is cut short; the message names it.
    """
    found = None if "://" in file or not Path(file).is_file() else Path(file).stat()
    return _read_footer(file, (found.st_size, found.st_mtime_ns) if found else None)


@lru_cache(maxsize=4096)
def _read_footer(file: str, size_and_time: tuple[int, int] | None) -> Footer:
    try:
        with fsspec.open(file, "rb") as opened:
            footer = pq.read_metadata(opened)
        schema = footer.schema.to_arrow_schema()
        described = b"huggingface" in (schema.metadata or {})
        features = datasets.Features.from_arrow_schema(schema) if described else None
    # of pyarrow for the file, of fsspec for the way to it, of datasets for what it wrote there
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read as parquet: {type(error).__name__}: {error}") from error
    groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    return Footer(groups, size_and_time[0] if size_and_time else 0, features)


def count_tar(file: str) -> int:
    """Return the samples of a local webdataset tar, from its headers.

    A sample is a run of files with the same name up to the first dot of the last part, as in `datasets`.

    Raises:
        DataError: If the file is no tar, or is cut short.
    """
    count, last = 0, None
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                key = _sample_key(member)
                if key is not None and key != last:
                    count, last = count + 1, key
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{file} cannot be read as a tar: {type(error).__name__}: {error}") from error
    return count


def _sample_key(member: Any) -> str | None:
    hidden = member.name.rpartition("/")[2].startswith((".", "__"))
    match = re.match(r"((?:.*/|)[^.]+)[.][^/]*$", member.name)
    return match.group(1) if member.isreg() and match and not hidden else None
