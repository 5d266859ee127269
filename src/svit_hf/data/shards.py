# SPDX-License-Identifier: Apache-2.0
"""Write a source anew as parquet shards that stream well: mixed, of equal size, with small row groups."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from svit_hf.data.decoding import BadImage, DecodingError
from svit_hf.data.loading import read_rows
from svit_hf.data.locations import find_location
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions, ShardOptions
from svit_hf.data.sharding import MapPlan, StreamPlan
from svit_hf.data.sources import ImageSource, IndexedSource, Row
from svit_hf.errors import DataError
from svit_hf.files import require_new_folder, whole_folder
from svit_hf.progress import Progress


MEGABYTE = 1_000_000
CLASSES_FILE = "classes.txt"


class WrittenSplit(NamedTuple):
    """What was written of a split.

    Attributes:
        files: The shards.
        num_images: Images in them.
        bad_images: Images that cannot be decoded, and were left out.
    """

    files: list[Path]
    num_images: int
    bad_images: list[BadImage]


def write_shards(source: DataOptions, output_dir: Path, options: ShardOptions) -> dict[str, WrittenSplit]:
    """Write all splits of a source as shards.

    Encoded images are copied byte for byte, if they can be decoded. Nothing is left in `output_dir` unless all of it
    was written, and what was written was counted again.

    Args:
        source: What to read.
        output_dir: A new or an empty folder.
        options: What the shards look like.

    Returns:
        What was written of each split.

    Raises:
        SViTError: If the folder is in use, or the source cannot be read.
        DataError: If no image of a split can be decoded, or what was written is not what was read.
    """
    require_new_folder(output_dir, "output_dir")
    splits = find_location(source).splits
    sources = {split: open_source(replace(source, eval_split=split), "eval") for split in splits}
    return write_sources(sources, output_dir, options)


def write_sources(
    sources: Mapping[str, ImageSource],
    output_dir: Path,
    options: ShardOptions,
    class_names: Sequence[str] = (),
) -> dict[str, WrittenSplit]:
    """Write opened sources, by the names of their splits, as `write_shards` does.

    `class_names` are for classes.txt, one per line, where the shards have no place for them.

    Raises:
        DataError: As in `write_shards`, or if an annotation cannot be used.
    """
    require_new_folder(output_dir, "output_dir")
    written = {}
    with whole_folder(output_dir) as folder:
        for split, source in sources.items():
            written[split] = _write_split(source, folder, split, options)
        if class_names:
            (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    return {
        split: done._replace(files=[output_dir / file.name for file in done.files]) for split, done in written.items()
    }


def _write_split(source: ImageSource, folder: Path, split: str, options: ShardOptions) -> WrittenSplit:
    schema = source.features().arrow_schema
    bad_images: list[BadImage] = []
    files: list[Path] = []
    with Progress(source.num_samples, f"images of {split}") as progress:
        shuffled = shuffled_rows(source, options.seed, options.shuffle_block)
        rows = _decodable(shuffled, source, bad_images, progress)
        while first := list(islice(rows, 1)):
            files.append(folder / f"{split}-{len(files):05d}.parquet")
            with pq.ParquetWriter(files[-1], schema) as writer:
                for group in _row_groups(first, rows, options):
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
    files = [file.rename(file.with_stem(f"{file.stem}-of-{len(files):05d}")) for file in files]
    if not files:
        raise DataError(f"none of the {source.num_samples} images of split {split!r} can be decoded; nothing is kept.")
    num_wanted = source.num_samples - len(bad_images)
    num_written = sum(pq.read_metadata(file).num_rows for file in files)
    if num_written != num_wanted:
        raise DataError(
            f"{num_written} images of split {split!r} were written and {num_wanted} were to be; nothing is kept."
        )
    return WrittenSplit(files, num_written, bad_images)


def _decodable(
    rows: Iterator[Row], source: ImageSource, bad_images: list[BadImage], progress: Progress
) -> Iterator[dict[str, Any]]:
    """Yield what is written of the rows whose images are images, and name the others."""
    for row in rows:
        progress.advance()
        try:
            decoded = source.decode(row)
        except DecodingError as error:
            bad_images.append(BadImage(row.sample_id, *source.locate(row.sample_id), str(error)))
        else:
            yield source.stored(row, decoded)


def shuffled_rows(source: ImageSource, seed: int, shuffle_block: int) -> Iterator[Row]:
    """Yield all images in random order: of an indexed source any order, of a stream as in an epoch of training."""
    if isinstance(source, IndexedSource):
        for sample_id in MapPlan(source.num_samples, 1, seed=seed).order(0)[0].tolist():
            yield source.row(sample_id)
        return
    plan = StreamPlan(source.num_samples, 1, seed=seed, shard_sizes=source.shard_sizes, shuffle_block=shuffle_block)
    rows = read_rows(source, plan.segments(0, range(source.num_samples)))
    for block in plan.blocks(0, 0):
        held = list(islice(rows, block.num_rows))
        for row, _ in block.slots:
            yield held[row]


def _row_groups(
    first: list[dict[str, Any]], rows: Iterator[dict[str, Any]], options: ShardOptions
) -> Iterator[list[dict[str, Any]]]:
    """Yield the row groups of one file, which begins with `first`."""
    num_rows, num_bytes, group = 0, 0, first
    most_rows = options.rows_per_shard or float("inf")
    most_bytes = float("inf") if options.rows_per_shard else options.megabytes * MEGABYTE
    while True:
        room = min(options.row_group_size, most_rows - num_rows) - len(group)
        group += islice(rows, int(room))
        if not group:
            return
        yield group
        num_rows += len(group)
        num_bytes += sum(len(row["image"]["bytes"]) for row in group)
        if num_rows >= most_rows or num_bytes >= most_bytes:
            return
        group = []
