# SPDX-License-Identifier: Apache-2.0
"""Predict the classes of images, part by part, so that nothing is done twice after an interruption.

Part `i` is the images from `i * part_size` on, whatever the processes are; those take parts in turn. A part's file
appears when it is complete, and a part that has its file is done. `prediction.json` says what the files are about.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

from svit_hf.data.decoding import DecodingError, ImageLimits, decode_image
from svit_hf.data.loading import load, workers_per_rank
from svit_hf.data.options import DataOptions
from svit_hf.data.sharding import segments
from svit_hf.data.sources import ImageSource, Row
from svit_hf.errors import SViTError
from svit_hf.evaluation.classifier import Classifier, Model, open_classifier, processes
from svit_hf.evaluation.options import Precision, require_positive
from svit_hf.evaluation.pictures import Images, Pictures, open_images
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.files import whole_file, write_text
from svit_hf.progress import Progress
from svit_hf.urls import without_credentials


HEADER = "prediction.json"

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
    """Images that go into one file.

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


@dataclass(frozen=True)
class Predictions:
    """Predictions for all images, in memory or in files.

    Attributes:
        num_images: How many images there are.
        num_new: Those that this process predicted just now; an earlier call, or another process, did the others.
        output: The folder of the files; `None` if there is none.
        files: The files, in order.
        tables: What would be in them, without a folder.
    """

    num_images: int
    num_new: int
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
        """Return a line for each image, with its likeliest classes."""
        rows = list(self.rows())
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


def predict_images(  # noqa: PLR0913 - what is predicted, by what, how, and where it goes
    model: Model,
    images: Images,
    *,
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    image_processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    batch_size: int = 64,
    precision: Precision = "fp32",
    top_k: int = 5,
    part_size: int = 4096,
    embeddings: bool = False,
    num_workers: int | None = None,
) -> Predictions:
    """Predict the classes of images.

    With `output`, every process that `torchrun` or `accelerate launch` has started calls this; each predicts a share,
    and what an earlier call with the same arguments has written is not done again.

    Args:
        model: A folder, an id of the Hub, the folder of a training run, whose finished model it is then, or a
            classifier in memory with its `image_processor`.
        images: Picture files, folders, globs, or pictures in memory, one or several; or one data set, as a path, as
            `DataOptions` or as an opened source. They need no labels.
        output: Folder for parquet files; without it the predictions stay in memory, and one process does all.
        split: The split of a data set.
        image_processor: What prepares the images; by default that of the model's folder.
        image_size: Edge, or height and width, of what the model sees, in pixels; its own by default.
        crop_pct: Share of the resized picture's edge that the crop keeps; that of the model by default.
        batch_size: Images per batch of each process.
        precision: Precision of the forward pass: `fp32`, `bf16` or `fp16`.
        top_k: How many of the likeliest classes are told.
        part_size: Images per file.
        embeddings: Add what the classifier's last layer is given.
        num_workers: Processes that read and decode; by default those of the options, or one per CPU, 8 at most.

    Raises:
        SViTError: If an argument is impossible, or the output folder is about something else.

    Example:
        >>> from svit_hf.evaluation import predict_images
        >>> predictions = predict_images("runs/pets", ["cat.png", "dog.png"])  # doctest: +SKIP
        >>> [row["label"] for row in predictions.rows()]  # doctest: +SKIP
        ['cat', 'dog']
    """
    require_positive(batch_size=batch_size, top_k=top_k, part_size=part_size)
    state = processes()
    source = open_images(images, split=split)
    classifier = open_classifier(
        model,
        state.device,
        image_processor=image_processor,
        image_size=image_size,
        crop_pct=crop_pct,
        precision=precision,
    )
    parts = _parts(source.num_samples, part_size)
    folder = None if output is None else Path(output)
    if folder is None:
        own = parts
    else:
        kept = {"top_k": top_k, "part_size": part_size, "embeddings": embeddings}
        with state.main_process_first():
            _claim(folder, _header(source, classifier) | kept)
        # by number and not by what is left: another process may have begun to write
        own = [part for part in parts[state.process_index :: state.num_processes] if not _file(folder, part).exists()]
    options = images if isinstance(images, DataOptions) else DataOptions()
    workers = workers_per_rank(options) if num_workers is None else num_workers
    batches = _ImagesOfParts(source, classifier.preprocessing, own, batch_size, options.limits)
    loader = load(batches, min(workers, len(own)))
    schema = pa.schema(COLUMNS | (EMBEDDING if embeddings else {}))
    num_new = sum(len(part.images) for part in own)
    tables: dict[Part, pa.Table] = {}
    with Progress(num_new, "images", is_shown=state.is_main_process) as progress:
        for part, rows in _predict(loader, source, classifier, top_k, embeddings, progress):
            table = pa.Table.from_pylist(rows, schema=schema)
            if folder is None:
                tables[part] = table
            else:
                _write(table, _file(folder, part))
    if folder is None:
        return Predictions(source.num_samples, num_new, tables=tuple(tables[part] for part in parts))
    state.wait_for_everyone()
    return Predictions(source.num_samples, num_new, folder, tuple(_file(folder, part) for part in parts))


def _parts(num_images: int, part_size: int) -> list[Part]:
    starts = range(0, num_images, part_size)
    return [Part(number, range(start, min(start + part_size, num_images))) for number, start in enumerate(starts)]


def _file(folder: Path, part: Part) -> Path:
    return folder / part.file_name


# no tuple: a DataLoader would take that apart
@dataclass(frozen=True)
class _Images:
    """Images of one part, as tensors or as what was wrong with them."""

    part: Part
    sample_ids: list[int]
    errors: list[str | None]
    pixel_values: torch.Tensor | None


@dataclass(frozen=True)
class _ImagesOfParts(IterableDataset[_Images]):
    """Images of parts, in batches; a worker takes whole parts."""

    source: ImageSource
    preprocessing: Preprocessing
    parts: list[Part]
    batch_size: int
    limits: ImageLimits

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
                pixel_values.append(self.preprocessing(decode_image(row.image, self.limits)))
                errors.append(None)
            except DecodingError as error:
                errors.append(str(error))
        stacked = torch.stack(pixel_values) if pixel_values else None
        return _Images(part, [row.sample_id for row in rows], errors, stacked)


def _predict(
    loader: Iterator[_Images],
    source: ImageSource,
    classifier: Classifier,
    top_k: int,
    has_embeddings: bool,
    progress: Progress,
) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    """Yield each part with its rows when all of them are there."""
    begun: dict[Part, list[dict[str, Any]]] = {}
    has_several = getattr(classifier.model.config, "problem_type", None) == "multi_label_classification"
    with _inputs_of_last_layer(classifier, has_embeddings) as embeddings:
        for batch in loader:
            outputs: list[dict[str, Any]] = []
            if batch.pixel_values is not None:
                logits = classifier.logits(batch.pixel_values)
                outputs = _outputs(logits, embeddings, classifier.class_names, top_k, has_several)
            rows = begun.setdefault(batch.part, [])
            rows += _rows(batch, outputs, source)
            progress.advance(len(batch.sample_ids))
            if len(rows) == len(batch.part.images):
                yield batch.part, begun.pop(batch.part)


def _outputs(
    logits: torch.Tensor, embeddings: list[torch.Tensor], class_names: list[str], top_k: int, has_several: bool
) -> list[dict[str, Any]]:
    """Return columns for each image that has an output; with several labels per image, each has a probability."""
    probabilities = logits.float().sigmoid() if has_several else logits.float().softmax(dim=-1)
    scores, ids = probabilities.topk(min(top_k, len(class_names)), dim=-1)
    outputs: list[dict[str, Any]] = []
    for top_scores, top_ids in zip(scores.tolist(), ids.tolist(), strict=True):
        if not math.isfinite(top_scores[0]):
            # the order of classes means nothing then
            outputs.append({"error": "the output of the model is not finite"})
            continue
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
        yield {"sample_id": sample_id, "source": without_credentials(name), "row": row, "error": error, **found}


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


def _write(table: pa.Table, path: Path) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def _header(source: ImageSource, classifier: Classifier) -> dict[str, Any]:
    """Return what has to be the same for files to belong together."""
    images = (
        source.digest() if isinstance(source, Pictures) else hashlib.sha256(source.description.encode()).hexdigest()
    )
    preprocessing = classifier.preprocessing
    header = {
        "source": without_credentials(source.description),
        "num_images": source.num_samples,
        "images": images,
        "weights": _digest(classifier.model),
        "class_names": classifier.class_names,
        "image_processor": json.loads(preprocessing.processor.to_json_string()),
        "processing": preprocessing.arguments,
        "precision": classifier.precision,
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
