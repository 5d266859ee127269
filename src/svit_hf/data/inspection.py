# SPDX-License-Identifier: Apache-2.0
"""What a source holds: every image is read once, decoded, counted, and named if it is broken."""

import io
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from svit_hf.data.columns import field_of, names_in_features, names_of_labels
from svit_hf.data.decoding import BadImage, DecodingError, decode_image
from svit_hf.data.locations import Location, find_location
from svit_hf.data.options import DataOptions
from svit_hf.data.row_counts import SourceIndex, SplitIndex, count_parquet, names_of
from svit_hf.data.sources import open_stream, reference_split, stored_image


READ_AT_A_TIME = 16
NUM_LISTED = 20
# a worker holds a whole row group in memory
LARGE_ROW_GROUP_BYTES = 256 << 20


class Shard(NamedTuple):
    """Hold what it takes to read one shard in another process."""

    stream: Any
    number: int
    columns: tuple[str, ...]
    name: str


@dataclass
class Findings:
    """Hold what was found in a shard, or in all of a split.

    Attributes:
        num_rows: Images, broken ones included.
        num_bytes: Bytes of the encoded images.
        labels: How often each label occurs, as it is stored.
        widths: How often each width occurs, in pixels.
        heights: How often each height occurs, in pixels.
        modes: How often each of Pillow's modes occurs.
        bad_images: The broken ones.
    """

    num_rows: int = 0
    num_bytes: int = 0
    labels: Counter[Any] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bad_images: list[BadImage] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Count in what was found elsewhere; its rows follow these."""
        self.bad_images += [bad._replace(sample_id=bad.sample_id + self.num_rows) for bad in other.bad_images]
        self.num_rows += other.num_rows
        self.num_bytes += other.num_bytes
        self.labels += other.labels
        self.widths += other.widths
        self.heights += other.heights
        self.modes += other.modes


@dataclass
class SplitInspection:
    """Hold what is known of a split.

    Attributes:
        files: Rows of the shards of each file, by the file's name.
        findings: What was found in all of them.
        columns: Columns of the images and labels.
    """

    files: dict[str, tuple[int, ...]]
    findings: Findings
    columns: tuple[str, ...]


@dataclass
class Inspection:
    """Hold what is known of a source.

    Attributes:
        path: Where it is.
        format: What it is.
        label_names: Names of the classes, in order.
        splits: The splits, by name.
    """

    path: str
    format: str
    label_names: tuple[str, ...]
    splits: dict[str, SplitInspection]

    def index(self) -> SourceIndex:
        """Return what spares a stream counting."""
        return SourceIndex(self.label_names, {name: SplitIndex(split.files) for name, split in self.splits.items()})

    def text(self) -> str:
        """Say it in lines."""
        lines = [f"{self.path}: {self.format}, {len(self.label_names)} classes"]
        for name, split in self.splits.items():
            lines += ["", f"split {name}", *(f"  {line}" for line in self._lines(split))]
        return "\n".join(lines)

    def _lines(self, split: SplitInspection) -> Iterator[str]:
        found = split.findings
        sizes = [size for counts in split.files.values() for size in counts]
        image_column, label_column = split.columns
        yield f"images    {found.num_rows} in column {image_column!r}, {found.num_bytes / 1e6:.1f} MB"
        yield f"shards    {len(sizes)} in {len(split.files)} files, {min(sizes)} to {max(sizes)} images each"
        if found.widths:
            modes = ", ".join(f"{mode}: {count}" for mode, count in found.modes.most_common())
            yield f"pixels    {_range(found.widths)} wide, {_range(found.heights)} high, {modes}"
        yield f"labels    in column {label_column!r}"
        for label, count in sorted(found.labels.items(), key=lambda item: str(item[0])):
            name = self.label_names[label] if isinstance(label, int) and 0 <= label < len(self.label_names) else label
            yield f"  {name}: {count}"
        yield f"broken    {len(found.bad_images)}"
        for bad in found.bad_images[:NUM_LISTED]:
            yield f"  {bad.source}, row {bad.row}: {bad.reason}"
        if len(found.bad_images) > NUM_LISTED:
            yield f"  and {len(found.bad_images) - NUM_LISTED} more"
        yield f"advice    {self._advice(found, sizes)}"

    def _advice(self, found: Findings, sizes: list[int]) -> str:
        if self.format == "imagefolder":
            return "read with an index; write shards with `svit-hf data shard` for many machines"
        largest = max(sizes) * found.num_bytes / max(1, found.num_rows)
        if largest > LARGE_ROW_GROUP_BYTES:
            return (
                f"the largest shard has {largest / 1e6:.0f} MB, and each worker holds one in memory; write smaller "
                "ones with `svit-hf data shard`"
            )
        return f"as a stream good for {len(sizes)} workers over all ranks; `svit-hf data shard` writes more shards"


def inspect_source(options: DataOptions, num_workers: int = 0) -> Inspection:
    """Read all images of all splits.

    Args:
        options: Where they are.
        num_workers: Processes that read and decode; 0 for this one.

    Raises:
        SViTError: If something is not there or not clear.
    """
    location = find_location(options)
    splits, features = {}, {}
    executor: Executor = ProcessPoolExecutor(num_workers) if num_workers else ThreadPoolExecutor(1)
    with executor:
        for split in location.splits:
            splits[split], features[split] = _inspect_split(options, location, split, executor)
    reference = reference_split(options, location, location.splits[0])
    names = names_in_features(features[reference], splits[reference].columns[1])
    if names is None:
        names = names_of_labels(splits[reference].findings.labels, options.path)
    return Inspection(options.path, location.format, names, splits)


def _inspect_split(
    options: DataOptions, location: Location, split: str, executor: Executor
) -> tuple[SplitInspection, Any]:
    stream, columns = open_stream(options, location, split)
    files = location.files(split)
    # an image folder is one shard
    names = names_of(files) if stream.num_shards == len(files) else [split] * stream.num_shards
    shards = [Shard(stream, number, columns, name) for number, name in enumerate(names)]
    findings = Findings()
    num_rows = []
    for number, found in enumerate(executor.map(read_shard, shards), 1):
        findings.add(found)
        num_rows.append((found.num_rows,))
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{split}: {number} of {len(shards)} files, {findings.num_rows} images ")
    counts = count_parquet(files) if all(file.endswith(".parquet") for file in files) else num_rows
    return SplitInspection(dict(zip(names, counts, strict=True)), findings, columns), stream.features


def read_shard(shard: Shard) -> Findings:
    """Read, decode and count the images of a file."""
    found = Findings()
    stream = shard.stream.shard(shard.stream.num_shards, shard.number)
    for batch in stream.iter(batch_size=READ_AT_A_TIME):
        for values in zip(*batch.values(), strict=True):
            example = dict(zip(batch, values, strict=True))
            image, label = (field_of(example, column) for column in shard.columns)
            found.labels[label] += 1
            _look_at(stored_image(image), shard.name, found)
    return found


def _look_at(stored: bytes | str | None, name: str, found: Findings) -> None:
    row = found.num_rows
    found.num_rows += 1
    found.num_bytes += len(stored) if isinstance(stored, bytes) else 0
    try:
        image = decode_image(stored)
        assert stored is not None
        with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as encoded:
            found.modes[encoded.mode] += 1
    except DecodingError as error:
        source = stored if isinstance(stored, str) else name
        found.bad_images.append(BadImage(row, source, row, str(error)))
        return
    found.widths[image.width] += 1
    found.heights[image.height] += 1


def _range(counts: Counter[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
