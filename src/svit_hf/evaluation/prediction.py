# SPDX-License-Identifier: Apache-2.0
"""Predict the classes of images, part by part, so that nothing is done twice after an interruption.

Part `i` is the images from `i * part_size` on, whatever the processes are; those take parts in turn. A part's file
appears when it is complete, and a part that has its file is done. `prediction.json` says what the files are about.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.loading import workers_per_rank
from svit_hf.data.sharding import segments
from svit_hf.data.sources import ImageSource, Row
from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import find_model
from svit_hf.evaluation.command import PredictCommand
from svit_hf.evaluation.pictures import PictureFiles, open_images
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.evaluation.session import (
    AUTOCAST_DTYPES,
    Classifier,
    open_classifier,
    processes,
    with_progress,
)
from svit_hf.files import write_text


HEADER = "prediction.json"
MOST_IMAGES_SHOWN = 20

COLUMNS = {
    "sample_id": pa.int64(),
    "source": pa.string(),
    "row": pa.int64(),
    "label": pa.string(),
    "score": pa.float32(),
    "top_ids": pa.list_(pa.int32()),
    "top_labels": pa.list_(pa.string()),
    "top_scores": pa.list_(pa.float32()),
    "error": pa.string(),
}
EMBEDDING = {"embedding": pa.list_(pa.float32())}


class Part(NamedTuple):
    """Name images that go into one file.

    Attributes:
        number: Its number, from 0.
        images: Their places in the source.
    """

    number: int
    images: range

    @property
    def file_name(self) -> str:
        """Name of the part's file."""
        return f"part-{self.number:05d}.parquet"


def predict_images(command: PredictCommand) -> None:
    """Predict what an earlier run of the same command has not predicted; rank 0 says what there is then.

    Raises:
        SViTError: If an argument is impossible, or the output folder is about something else.
    """
    state = processes()
    options = command.data if command.split is None else dataclasses.replace(command.data, eval_split=command.split)
    with state.main_process_first():
        source = open_images(command.sources, options)
    if command.output is None and (source.num_samples > MOST_IMAGES_SHOWN or state.num_processes > 1):
        raise SViTError(
            f"`output` has to name a folder: only up to {MOST_IMAGES_SHOWN} images, on one process, are shown and not "
            f"written; there are {source.num_samples}."
        )
    classifier = open_classifier(find_model(command.model, command.weights), command, state.device)
    with TemporaryDirectory() if command.output is None else nullcontext(command.output) as folder:
        output_dir = Path(folder)
        with state.main_process_first():
            _claim(output_dir, _header(command, source, classifier))
        parts = _parts(source.num_samples, command.part_size)
        # by number and not by what is left: another process may have begun to write
        own = [part for part in parts[state.process_index :: state.num_processes] if not _is_done(part, output_dir)]
        for part, rows in _predict(own, source, classifier, command, state):
            _write(rows, output_dir / part.file_name, command.embeddings)
        state.wait_for_everyone()
        if state.is_main_process:
            print(_summary(parts, len(own), output_dir, command))  # noqa: T201 - a program's result


def _parts(num_images: int, part_size: int) -> list[Part]:
    starts = range(0, num_images, part_size)
    return [Part(number, range(start, min(start + part_size, num_images))) for number, start in enumerate(starts)]


def _is_done(part: Part, output_dir: Path) -> bool:
    return (output_dir / part.file_name).exists()


# no tuple: a DataLoader would take that apart
@dataclasses.dataclass(frozen=True)
class _Images:
    """Hold images of one part, as tensors or as what was wrong with them."""

    part: Part
    sample_ids: list[int]
    errors: list[str | None]
    pixel_values: torch.Tensor | None


@dataclasses.dataclass(frozen=True)
class _ImagesOfParts(IterableDataset[_Images]):
    """Give the images of parts in batches; a worker takes whole parts."""

    source: ImageSource
    preprocessing: Preprocessing
    parts: list[Part]
    batch_size: int

    def __iter__(self) -> Iterator[_Images]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        order = list(range(len(self.source.shard_sizes)))
        for part in self.parts[first::stride]:
            places = segments(self.source.shard_sizes, order, part.images.start, len(part.images))
            rows = chain.from_iterable(self.source.rows(*place) for place in places)
            while batch := list(islice(rows, self.batch_size)):
                yield self._images(part, batch)

    def _images(self, part: Part, rows: list[Row]) -> _Images:
        pixel_values: list[torch.Tensor] = []
        errors: list[str | None] = []
        for row in rows:
            try:
                pixel_values.append(self.preprocessing(decode_image(row.image)))
                errors.append(None)
            except DecodingError as error:
                errors.append(str(error))
        stacked = torch.stack(pixel_values) if pixel_values else None
        return _Images(part, [row.sample_id for row in rows], errors, stacked)


def _predict(
    parts: list[Part], source: ImageSource, classifier: Classifier, command: PredictCommand, state: PartialState
) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    """Yield each part with its rows when all of them are there."""
    images = _ImagesOfParts(source, classifier.preprocessing, parts, command.batch_size)
    workers = min(workers_per_rank(command.data), len(parts))
    # batches come whole out of the workers
    loader: Any = DataLoader(images, batch_size=None, num_workers=workers, pin_memory=state.device.type == "cuda")
    total = sum(len(part.images) for part in parts)
    begun: dict[Part, list[dict[str, Any]]] = {}
    autocast_dtype = AUTOCAST_DTYPES[command.precision]
    with _inputs_of_last_layer(classifier, command.embeddings) as embeddings, torch.no_grad():
        for batch in with_progress(loader, lambda batch: len(batch.sample_ids), total, state.is_main_process):
            outputs: list[dict[str, Any]] = []
            if batch.pixel_values is not None:
                pixel_values = batch.pixel_values.to(state.device, non_blocking=True)
                with torch.autocast(state.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    logits = classifier.forward(pixel_values).logits
                outputs = _outputs(logits, embeddings, classifier.class_names, command.top_k)
            rows = begun.setdefault(batch.part, [])
            rows += _rows(batch, outputs, source)
            if len(rows) == len(batch.part.images):
                yield batch.part, begun.pop(batch.part)


def _outputs(
    logits: torch.Tensor, embeddings: list[torch.Tensor], class_names: list[str], top_k: int
) -> list[dict[str, Any]]:
    """Return columns for each image that has an output."""
    scores, ids = logits.float().softmax(dim=-1).topk(min(top_k, len(class_names)), dim=-1)
    outputs = []
    for top_scores, top_ids in zip(scores.tolist(), ids.tolist(), strict=True):
        labels = [class_names[number] for number in top_ids]
        top = {"top_ids": top_ids, "top_labels": labels, "top_scores": top_scores}
        outputs.append({"label": labels[0], "score": top_scores[0], **top})
    if embeddings:
        for output, embedding in zip(outputs, embeddings.pop().float().flatten(1).tolist(), strict=True):
            output["embedding"] = embedding
    return outputs


def _rows(batch: _Images, outputs: list[dict[str, Any]], source: ImageSource) -> Iterator[dict[str, Any]]:
    remaining = iter(outputs)
    for sample_id, error in zip(batch.sample_ids, batch.errors, strict=True):
        name, row = source.locate(sample_id)
        found = next(remaining) if error is None else {}
        yield {"sample_id": sample_id, "source": name, "row": row, "error": error, **found}


@contextmanager
def _inputs_of_last_layer(classifier: Classifier, is_wanted: bool) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets what the last layer is given, `(B, C)` for each batch, if it is wanted.

    Raises:
        SViTError: If there is no linear layer that gives the logits.
    """
    inputs: list[torch.Tensor] = []
    if not is_wanted:
        yield inputs
        return
    num_classes = len(classifier.class_names)
    linear = [module for module in classifier.model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in linear if module.out_features == num_classes]
    if not heads:
        name = type(classifier.model).__name__
        raise SViTError(f"`embeddings` needs a model with a linear classifier; {name} has none.")
    handle = heads[-1].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def _write(rows: list[dict[str, Any]], path: Path, has_embeddings: bool) -> None:
    schema = pa.schema(COLUMNS | (EMBEDDING if has_embeddings else {}))
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    partial.replace(path)


def _header(command: PredictCommand, source: ImageSource, classifier: Classifier) -> dict[str, Any]:
    """Return what has to be the same for files to belong together."""
    names = "\n".join(source.files) if isinstance(source, PictureFiles) else source.description
    preprocessing = classifier.preprocessing
    header = {
        "sources": list(command.sources),
        "num_images": source.num_samples,
        "images": hashlib.sha256(names.encode()).hexdigest(),
        "weights": _digest(classifier.model),
        "class_names": classifier.class_names,
        "image_processor": json.loads(preprocessing.processor.to_json_string()),
        "processing": preprocessing.arguments,
        "precision": command.precision,
        "top_k": command.top_k,
        "part_size": command.part_size,
        "embeddings": command.embeddings,
    }
    content: dict[str, Any] = json.loads(json.dumps(header))
    return content


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


def _summary(parts: list[Part], num_new: int, output_dir: Path, command: PredictCommand) -> str:
    files = [output_dir / part.file_name for part in parts]
    num_images = sum(len(part.images) for part in parts)
    num_broken = sum(table.num_rows - table["error"].null_count for table in _read(files, ["error"]))
    lines = []
    if num_images <= MOST_IMAGES_SHOWN:
        lines.append(_table(list(chain.from_iterable(table.to_pylist() for table in _read(files, list(COLUMNS))))))
    if command.output is not None:
        broken = f", {num_broken} of them broken" if num_broken else ""
        news = "nothing was left to do" if num_new == 0 else "complete"
        lines.append(f"{num_images} images{broken}, in {len(parts)} files in {output_dir}: {news}")
    return "\n".join(lines)


def _read(files: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    return (pq.read_table(file, columns=columns) for file in files)


def _table(rows: list[dict[str, Any]]) -> str:
    """Return a line for each image, with its likeliest classes."""
    names = [row["source"] if row["row"] == 0 else f"{row['source']}, row {row['row']}" for row in rows]
    width = max(map(len, names))
    lines = []
    for name, row in zip(names, rows, strict=True):
        found = row["error"] and f"broken: {row['error']}"
        if not found:
            best = zip(row["top_labels"], row["top_scores"], strict=True)
            found = "  ".join(f"{label} {score:.1%}" for label, score in best)
        lines.append(f"{name:<{width}}  {found}")
    return "\n".join(lines)
