# SPDX-License-Identifier: Apache-2.0
"""Write annotated pictures, in whatever layout they are, anew as parquet shards that stream well."""

from collections.abc import Sequence
from pathlib import Path

from svit_hf.data.options import DataOptions, ShardOptions
from svit_hf.data.shards import WrittenSplit, write_sources
from svit_hf.errors import SViTError
from svit_hf.tasks import task_class
from svit_hf.tasks.models import SMALLEST_SIZE
from svit_hf.tasks.opening import find_splits
from svit_hf.tasks.options import AnnotationOptions


def write_annotated_shards(
    task: str,
    source: DataOptions,
    output_dir: Path,
    options: ShardOptions,
    labels: Sequence[str] = (),
    annotations: AnnotationOptions | None = None,
) -> dict[str, WrittenSplit]:
    """Write all splits of annotated pictures as shards, as `svit_hf.data.shards.write_shards` does for classes.

    Masks become class indices as PNG, boxes left, top, width and height in pixels, masks of objects run-length codes.
    Without `labels`, the classes are those that the data name.

    Raises:
        SViTError: If the folder is in use, the classes have no names, or the source cannot be read.
        DataError: If an annotation cannot be used, or no picture of a split can be decoded.
    """
    kind = task_class(task)
    found = find_splits(kind, source)
    named = list(labels) or next((split.labels for split in found if split.labels), [])
    if not named:
        raise SViTError(
            f"`labels` is empty, and {source.path!r} does not name its classes; name them, in the order of their "
            "numbers."
        )
    # no size matters here
    reader = kind(named, SMALLEST_SIZE, annotations=annotations)
    sources = {split.name: split.source(reader) for split in found}
    return write_sources(sources, output_dir, options, reader.labels)
