# SPDX-License-Identifier: Apache-2.0
"""How many rows the shards of a stream have, without reading the images: footers, tar headers, or an index file."""

import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from svit_hf.errors import SViTError


INDEX_VERSION = 1
NUM_THREADS = 16

# rows of each shard of a file: of its row groups, or one number
FileCounts = tuple[int, ...]


@dataclass(frozen=True)
class SplitIndex:
    """Hold what an index file says about a split.

    Attributes:
        files: Rows of the shards of each file, by the file's name.
    """

    files: dict[str, FileCounts]


@dataclass(frozen=True)
class SourceIndex:
    """Hold what an index file says.

    Attributes:
        label_names: Names of the classes, in order.
        splits: The splits, by name.
    """

    label_names: tuple[str, ...]
    splits: dict[str, SplitIndex]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "version": INDEX_VERSION,
            "label_names": self.label_names,
            "splits": {name: {"files": split.files} for name, split in self.splits.items()},
        }
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

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
                name: SplitIndex({file: tuple(map(int, counts)) for file, counts in split["files"].items()})
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

    So an index fits wherever the files are: a revision of the Hub, a mirror, another mount.
    """
    folders = [file.split("/")[:-1] for file in files]
    common = 0
    while all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return ["/".join(file.split("/")[common:]) for file in files]


def check_index(index: SplitIndex, files: list[str], split: str, path: str) -> list[FileCounts]:
    """Return the counts of files in their order.

    Raises:
        SViTError: If the index is about other files.
    """
    names = names_of(files)
    if different := sorted(set(names) ^ set(index.files)):
        shown = ", ".join(different[:3])
        raise SViTError(
            f"`index` is {path!r}, which does not fit the split {split!r}: {len(different)} files are only in one of "
            f"them, such as {shown}. Make it anew with `svit-hf data inspect SOURCE --write-index FILE`."
        )
    return [index.files[name] for name in names]


def count_parquet(files: list[str]) -> list[FileCounts]:
    """Return the rows of each row group of parquet files, local or remote, from their footers."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(_count_row_groups, files))


def _count_row_groups(file: str) -> FileCounts:
    with fsspec.open(file, "rb") as opened:
        footer = pq.read_metadata(opened)
    return tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))


def count_tar(file: str) -> int:
    """Return the samples of a local webdataset tar, from its headers.

    A sample is a run of files with the same name up to the first dot of the last part, as in `datasets`.
    """
    count, last = 0, None
    with tarfile.open(file) as archive:
        for member in archive:
            key = _sample_key(member)
            if key is not None and key != last:
                count, last = count + 1, key
    return count


def _sample_key(member: Any) -> str | None:
    hidden = member.name.rpartition("/")[2].startswith((".", "__"))
    match = re.match(r"((?:.*/|)[^.]+)[.][^/]*$", member.name)
    return match.group(1) if member.isreg() and match and not hidden else None
