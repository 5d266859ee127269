# SPDX-License-Identifier: Apache-2.0
"""Predictions part by part, so that nothing is done twice after an interruption.

Part `i` is the images from `i * part_size` on, whatever the processes are; those take parts in turn. A part's file
appears when it is complete, and a part that has its file is done. `prediction.json` says what the files are about.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from svit_hf.data.decoding import DecodingError
from svit_hf.data.loading import load
from svit_hf.data.sources import ImageSource, Row
from svit_hf.errors import SViTError
from svit_hf.evaluation.classifier import processes
from svit_hf.evaluation.pictures import Pictures
from svit_hf.files import whole_file, write_text
from svit_hf.progress import Progress
from svit_hf.urls import without_credentials


HEADER = "prediction.json"
# of every prediction: which picture it is about, and why there is none
PLACE = {"sample_id": pa.int64(), "source": pa.string(), "row": pa.int64()}
ERROR = {"error": pa.string()}
# what a worker makes of a picture: pixel values, and whatever else the prediction needs
Prepare = Callable[[Image.Image], tuple[torch.Tensor, Any]]
# from pixel values `(B, C, H, W)`, what else was made of each picture, and its row so far, to further columns
Predict = Callable[[torch.Tensor, Sequence[Any], Sequence[dict[str, Any]]], list[dict[str, Any]]]


class Part(NamedTuple):
    """Images that go into one file: its number, from 0, and their places in the source."""

    number: int
    images: range

    def file(self, folder: Path) -> Path:
        """Return the part's file in a folder."""
        return folder / f"part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class Predictions:
    """Predictions for all images, in memory or in files.

    Attributes:
        num_images: How many images there are.
        num_new: Those that this process predicted just now; an earlier call, or another process, did the others.
        describe: Says in a few words what was predicted, from a row.
        output: The folder of the files; `None` if there is none.
        files: The files, in order.
        tables: What would be in them, without a folder.
    """

    num_images: int
    num_new: int
    describe: Callable[[dict[str, Any]], str]
    output: Path | None = None
    files: tuple[Path, ...] = ()
    tables: tuple[pa.Table, ...] = ()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a mapping for each image: `label`, `score`, `top_labels`, `error` and so on."""
        for table in self.tables or map(pq.read_table, self.files):
            yield from table.to_pylist()

    @property
    def num_broken(self) -> int:
        """Images without a prediction."""
        tables = self.tables or (pq.read_table(file, columns=["error"]) for file in self.files)
        return sum(table.num_rows - table["error"].null_count for table in tables)

    def summary(self) -> str:
        """Return in a line what there is."""
        broken = f", {num_broken} of them broken" if (num_broken := self.num_broken) else ""
        news = "complete" if self.num_new else "nothing was left to do"
        return f"{self.num_images} images{broken}, in {len(self.files)} files in {self.output}: {news}"

    def table(self) -> str:
        """Return a line for each image, with what was predicted."""
        rows = list(self.rows())
        names = [row["source"] if row["row"] == 0 else f"{row['source']}, row {row['row']}" for row in rows]
        width = max(map(len, names))
        found = [f"broken: {row['error']}" if row["error"] else self.describe(row) for row in rows]
        return "\n".join(f"{name:<{width}}  {what}" for name, what in zip(names, found, strict=True))


def predict_parts(  # noqa: PLR0913 - what is predicted, by what, how, and where it goes
    source: ImageSource,
    prepare: Prepare,
    predict: Predict,
    columns: dict[str, pa.DataType],
    about: dict[str, Any],
    *,
    output: Path | None,
    part_size: int,
    batch_size: int,
    num_workers: int,
    describe: Callable[[dict[str, Any]], str],
) -> Predictions:
    """Predict something of images, whatever it is, in parts that are shared by processes and never done twice.

    Args:
        source: The images.
        prepare: What workers make of each.
        predict: What this process makes of a batch of that.
        columns: Types of the columns that `predict` gives, beside those in `PLACE` and `ERROR`.
        about: What has to be the same for files to belong together, see `header`.
        output: Folder of the files; without it everything stays in memory.
        part_size: Images per file.
        batch_size: Images per batch of each process.
        num_workers: Processes that read and decode.
        describe: As in `Predictions`.

    Raises:
        SViTError: If the folder is about something else.
    """
    state = processes()
    parts = _parts(source.num_samples, part_size)
    if output is None:
        own = parts
    else:
        with state.main_process_first():
            _claim(output, json.loads(json.dumps(about)))
        # by number and not by what is left: another process may have begun to write
        own = [part for part in parts[state.process_index :: state.num_processes] if not part.file(output).exists()]
    loader = load(_ImagesOfParts(source, prepare, own, batch_size), min(num_workers, len(own)))
    schema = pa.schema(PLACE | columns | ERROR)
    num_new = sum(len(part.images) for part in own)
    tables: dict[Part, pa.Table] = {}
    with Progress(num_new, "images", is_shown=state.is_main_process) as progress:
        for part, rows in _predict(loader, source, predict, progress):
            table = pa.Table.from_pylist(rows, schema=schema)
            if output is None:
                tables[part] = table
            else:
                _write(table, part.file(output))
    if output is None:
        return Predictions(source.num_samples, num_new, describe, tables=tuple(tables[part] for part in parts))
    state.wait_for_everyone()
    return Predictions(source.num_samples, num_new, describe, output, tuple(part.file(output) for part in parts))


def _parts(num_images: int, part_size: int) -> list[Part]:
    starts = range(0, num_images, part_size)
    return [Part(number, range(start, min(start + part_size, num_images))) for number, start in enumerate(starts)]


# no tuple: a DataLoader would take that apart
@dataclass(frozen=True)
class _Images:
    """Images of one part, as tensors or as what was wrong with them."""

    part: Part
    sample_ids: list[int]
    errors: list[str | None]
    pixel_values: torch.Tensor | None
    extras: list[Any]


@dataclass(frozen=True)
class _ImagesOfParts(IterableDataset[_Images]):
    """Images of parts, in batches; a worker takes whole parts."""

    source: ImageSource
    prepare: Prepare
    parts: list[Part]
    batch_size: int

    def __iter__(self) -> Iterator[_Images]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for part in self.parts[first::stride]:
            rows = self.source.rows_at(part.images)
            while batch := list(islice(rows, self.batch_size)):
                yield self._images(part, batch)

    def _images(self, part: Part, rows: list[Row]) -> _Images:
        prepared: list[tuple[torch.Tensor, Any]] = []
        errors: list[str | None] = []
        for row in rows:
            try:
                prepared.append(self.prepare(self.source.decode(row)))
                errors.append(None)
            except DecodingError as error:
                errors.append(str(error))
        stacked = torch.stack([pixels for pixels, _ in prepared]) if prepared else None
        return _Images(part, [row.sample_id for row in rows], errors, stacked, [extra for _, extra in prepared])


def _predict(
    loader: Iterator[_Images], source: ImageSource, predict: Predict, progress: Progress
) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    """Yield each part with its rows when all of them are there."""
    begun: dict[Part, list[dict[str, Any]]] = {}
    for batch in loader:
        rows = [_row(*pair, source) for pair in zip(batch.sample_ids, batch.errors, strict=True)]
        whole = [row for row in rows if row["error"] is None]
        if batch.pixel_values is not None:
            for row, columns in zip(whole, predict(batch.pixel_values, batch.extras, whole), strict=True):
                row.update(columns)
        of_part = begun.setdefault(batch.part, [])
        of_part += rows
        progress.advance(len(rows))
        if len(of_part) == len(batch.part.images):
            yield batch.part, begun.pop(batch.part)


def _row(sample_id: int, error: str | None, source: ImageSource) -> dict[str, Any]:
    name, row = source.locate(sample_id)
    return {"sample_id": sample_id, "source": without_credentials(name), "row": row, "error": error}


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def header(source: ImageSource, model: nn.Module, class_names: Sequence[str], image_processor: Any) -> dict[str, Any]:
    """Return what has to be the same for files to belong together, as far as every prediction has it."""
    images = (
        source.digest() if isinstance(source, Pictures) else hashlib.sha256(source.description.encode()).hexdigest()
    )
    return {
        "source": without_credentials(source.description),
        "num_images": source.num_samples,
        "images": images,
        "weights": _digest(model),
        "class_names": list(class_names),
        "image_processor": json.loads(image_processor.to_json_string()),
    }


def _digest(model: nn.Module) -> str:
    """Return a digest of a model's weights, by which it is known wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _claim(output_dir: Path, header: dict[str, Any]) -> None:
    """Make the output folder, or find that it holds a part of the same prediction.

    Raises:
        SViTError: If it cannot be made, or holds something else.
    """
    path = output_dir / HEADER
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if others := sorted(entry.name for entry in output_dir.iterdir()):
                raise SViTError(
                    f"`output` is {str(output_dir)!r}, which holds {others[0]!r} but no {HEADER}; name a new folder."
                )
            write_text(path, json.dumps(header, indent=2) + "\n")
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SViTError(f"`output` is {str(output_dir)!r}, which cannot be used: {error}") from error
    changed = [name for name in header if not isinstance(earlier, dict) or earlier.get(name) != header[name]]
    if changed:
        raise SViTError(
            f"`output` is {str(output_dir)!r}, where a prediction was begun with other {', '.join(changed)}. Name a "
            "new folder, or the same arguments."
        )
