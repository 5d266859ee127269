# SPDX-License-Identifier: Apache-2.0
"""What a source holds: every image is read once, decoded, counted, and named if it is broken."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from svit_hf.data.columns import (
    LabelIds,
    field_of,
    find_columns,
    names_in_features,
    names_of_labels,
    refuse_lists,
    remarks_on_names,
)
from svit_hf.data.counts import SourceIndex, names_of, read_footers
from svit_hf.data.decoding import BadImage, DecodingError, ImageLimits, decode_image
from svit_hf.data.folders import FolderSplit
from svit_hf.data.locations import Location, find_location
from svit_hf.data.opening import names_of_footer, reference_split, stream_columns
from svit_hf.data.options import DataOptions
from svit_hf.data.sharding import share
from svit_hf.data.sources import explain_reading, stored_image
from svit_hf.errors import DataError
from svit_hf.progress import Progress


READ_AT_A_TIME = 16
NUM_LISTED = 20
# image files that one process looks at before it tells
FILES_AT_A_TIME = 500
# a worker holds a whole row group in memory
LARGE_ROW_GROUP_BYTES = 256 << 20


class Shard(NamedTuple):
    """What it takes to read one file of a stream in another process: all of them, and which to read."""

    stream: Any
    number: int
    name: str
    columns: tuple[str, ...]
    # what integers among the labels stand for, if they stand for names
    stored_names: tuple[str, ...] | None
    # whether rows name image files
    has_files: bool
    options: DataOptions


class Files(NamedTuple):
    """Some image files of a folder, with their classes."""

    root: str
    images: FolderSplit
    places: range
    limits: ImageLimits


@dataclass
class Findings:
    """What was found in a shard, or in all of a split.

    Attributes:
        num_rows: Images, broken ones included.
        num_bytes: Bytes of the encoded images.
        labels: How often each label occurs: by name where it has one, otherwise as it is stored.
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

    def look_at(self, stored: bytes | str | None, source: str, row: int, limits: ImageLimits) -> None:
        """Decode an image, and count it."""
        self.num_rows += 1
        try:
            image = decode_image(stored, limits)
            assert stored is not None
            data = io.BytesIO(stored) if isinstance(stored, bytes) else stored
            with Image.open(data) as encoded:
                self.modes[encoded.mode] += 1
        except DecodingError as error:
            self.bad_images.append(BadImage(self.num_rows - 1, source, row, str(error)))
            return
        self.num_bytes += len(stored) if isinstance(stored, bytes) else 0
        self.widths[image.width] += 1
        self.heights[image.height] += 1


@dataclass
class SplitInspection:
    """What is known of a split.

    Attributes:
        files: Rows of the shards of each file, by the file's name.
        columns: Columns of the images and labels; none of a folder.
        wrong_labels: Labels that are none of the classes, and how often they occur.
    """

    files: dict[str, tuple[int, ...]]
    findings: Findings
    columns: tuple[str, ...] = ()
    wrong_labels: Counter[Any] = field(default_factory=Counter)


@dataclass
class Inspection:
    """What is known of a source; `remarks` say what is not used, and what is odd."""

    path: str
    format: str
    label_names: tuple[str, ...]
    splits: dict[str, SplitInspection]
    remarks: list[str]

    @property
    def is_usable(self) -> bool:
        """Whether every image can be read, and every label is a class."""
        return not any(split.findings.bad_images or split.wrong_labels for split in self.splits.values())

    def index(self) -> SourceIndex:
        """Return what spares a stream counting."""
        return SourceIndex(self.label_names, {name: split.files for name, split in self.splits.items()})

    def text(self) -> str:
        """Return it in lines."""
        lines = [f"{self.path}: {self.format}, {len(self.label_names)} classes"]
        lines += [f"  {remark}" for remark in self.remarks]
        for name, split in self.splits.items():
            lines += ["", f"split {name}", *(f"  {line}" for line in self._lines(split))]
        return "\n".join(lines)

    def _lines(self, split: SplitInspection) -> Iterator[str]:
        found = split.findings
        sizes = [size for counts in split.files.values() for size in counts] or [0]
        place = f"in column {split.columns[0]!r}, {found.num_bytes / 1e6:.1f} MB" if split.columns else "in files"
        yield f"images    {found.num_rows} {place}"
        if split.columns:
            yield f"shards    {len(sizes)} in {len(split.files)} files, {min(sizes)} to {max(sizes)} images each"
        if found.widths:
            modes = ", ".join(f"{mode}: {count}" for mode, count in found.modes.most_common())
            yield f"pixels    {_range(found.widths)} wide, {_range(found.heights)} high, {modes}"
        yield f"labels    in column {split.columns[1]!r}" if split.columns else "labels    by folder"
        for label, count in sorted(found.labels.items(), key=lambda item: str(item[0])):
            note = ", which is no class of the training split" if label in split.wrong_labels else ""
            yield f"  {label}: {count}{note}"
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
    """Read all images of all splits, in so many processes; 0 for this one.

    Raises:
        SViTError: If something is not there or not clear.
    """
    location = find_location(options)
    executor: Executor = ProcessPoolExecutor(num_workers) if num_workers else ThreadPoolExecutor(1)
    with executor:
        if location.folder is not None:
            splits = {name: _inspect_files(options, location, name, executor) for name in location.splits}
        else:
            splits = {name: _inspect_stream(options, location, name, executor) for name in location.splits}
    reference = reference_split(options, location, location.splits[0])
    names = _class_names(options, location, reference, splits[reference])
    ids = LabelIds(names)
    for split in splits.values():
        split.wrong_labels = Counter({label: n for label, n in split.findings.labels.items() if not _has(ids, label)})
        if split.wrong_labels and not split.columns and None in split.wrong_labels:
            # a folder of images without classes beside splits that have some matters only when it is used
            del split.wrong_labels[None]
    return Inspection(options.path, location.format, names, splits, [*location.remarks(), *remarks_on_names(names)])


def _class_names(options: DataOptions, location: Location, reference: str, split: SplitInspection) -> tuple[str, ...]:
    if location.folder is not None:
        return location.folder.splits[reference].class_names
    stated = next((shard_names for shard_names in _stored_names(options, location, reference, split.columns)), None)
    return stated or names_of_labels(split.findings.labels, options.path)


def _stored_names(
    options: DataOptions, location: Location, split: str, columns: tuple[str, ...]
) -> list[tuple[str, ...] | None]:
    """Return what integers among the labels of each file stand for, if they stand for names."""
    if location.format == "parquet":
        return [names_of_footer(footer, options) for footer in read_footers(location.files(split))]
    return [names_in_features(location.builder.info.features, columns[1])]


def _has(ids: LabelIds, label: Any) -> bool:
    try:
        ids(label, "", 0)
    except DataError:
        return False
    return True


def _inspect_files(options: DataOptions, location: Location, split: str, executor: Executor) -> SplitInspection:
    assert location.folder is not None
    images, root = location.folder.splits[split], str(location.folder.root)
    count = -(-len(images.files) // FILES_AT_A_TIME)
    parts = [Files(root, images, share(len(images.files), number, count), options.limits) for number in range(count)]
    findings = Findings()
    for found in _watched(executor.map(read_files, parts), count, split):
        findings.add(found)
    return SplitInspection({split: (findings.num_rows,)}, findings)


def _inspect_stream(options: DataOptions, location: Location, split: str, executor: Executor) -> SplitInspection:
    with explain_reading(options.path):
        choose = partial(find_columns, options=options, labelled=True)
        stream, columns = stream_columns(options, location, split, choose)
    files = location.files(split)
    # an image folder is one shard
    names = names_of(files) if stream.num_shards == len(files) else [split] * stream.num_shards
    stored = _stored_names(options, location, split, columns)
    if len(stored) != len(names):
        stored = [stored[0] or names_in_features(stream.features, columns[1])] * len(names)
    has_files = location.format == "imagefolder"
    shards = [
        Shard(stream, number, name, columns, stored[number], has_files, options) for number, name in enumerate(names)
    ]
    findings = Findings()
    num_rows: list[tuple[int, ...]] = []
    for found in _watched(executor.map(read_shard, shards), len(shards), split):
        findings.add(found)
        num_rows.append((found.num_rows,))
    counts = num_rows
    if all(file.endswith(".parquet") for file in files):
        counts = [footer.rows for footer in read_footers(files)]
    return SplitInspection(dict(zip(names, counts, strict=True)), findings, columns)


def _watched(parts: Iterable[Findings], count: int, split: str) -> Iterator[Findings]:
    with Progress(count, f"parts of {split}") as progress:
        for found in parts:
            progress.advance()
            yield found


def read_files(files: Files) -> Findings:
    """Read, decode and count some image files."""
    found = Findings()
    for place in files.places:
        path = files.images.files[place]
        found.labels[files.images.classes[place] if files.images.classes else None] += 1
        found.look_at(f"{files.root}/{path}", path, 0, files.limits)
    return found


def read_shard(shard: Shard) -> Findings:
    """Read, decode and count the images of a file of a stream.

    Raises:
        DataError: If the file cannot be read; the message names it.
    """
    found = Findings()
    stream = shard.stream.shard(shard.stream.num_shards, shard.number)
    with explain_reading(shard.name):
        for batch in stream.iter(batch_size=READ_AT_A_TIME):
            for values in zip(*batch.values(), strict=True):
                example = dict(zip(batch, values, strict=True))
                image, label = (field_of(example, column) for column in shard.columns)
                if not shard.options.multi_label:
                    refuse_lists(label, shard.name, found.num_rows)
                labels = label or () if shard.options.multi_label else [label]
                found.labels.update(_named(one, shard.stored_names) for one in labels)
                stored = stored_image(image, shard.has_files)
                source = stored if isinstance(stored, str) else shard.name
                found.look_at(stored, source, found.num_rows, shard.options.limits)
    return found


def _named(label: Any, stored_names: tuple[str, ...] | None) -> Any:
    if stored_names is not None and isinstance(label, int) and 0 <= label < len(stored_names):
        return stored_names[label]
    return label


def _range(counts: Counter[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
