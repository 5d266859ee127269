# SPDX-License-Identifier: Apache-2.0
"""Predict the classes of images."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from svit_hf.data.loading import workers_per_rank
from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.evaluation.classifier import Classifier, Model, open_classifier, processes
from svit_hf.evaluation.options import Precision, require_positive
from svit_hf.evaluation.parts import Predictions, header, predict_parts
from svit_hf.evaluation.pictures import Images, open_images


COLUMNS = {
    "label": pa.string(),
    "score": pa.float32(),
    "top_ids": pa.list_(pa.int32()),
    "top_labels": pa.list_(pa.string()),
    "top_scores": pa.list_(pa.float32()),
}
EMBEDDING = {"embedding": pa.list_(pa.float32())}


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
    source = open_images(images, split=split)
    classifier = open_classifier(
        model,
        processes().device,
        image_processor=image_processor,
        image_size=image_size,
        crop_pct=crop_pct,
        precision=precision,
    )
    preprocessing = classifier.preprocessing
    about = header(source, classifier.model, classifier.class_names, preprocessing.processor) | {
        "processing": preprocessing.arguments,
        "precision": precision,
        "top_k": top_k,
        "part_size": part_size,
        "embeddings": embeddings,
    }
    has_several = getattr(classifier.model.config, "problem_type", None) == "multi_label_classification"
    options = images if isinstance(images, DataOptions) else DataOptions()
    with _inputs_of_last_layer(classifier, embeddings) as last_inputs:

        def predict(
            pixel_values: torch.Tensor, extras: Sequence[Any], rows: Sequence[dict[str, Any]]
        ) -> list[dict[str, Any]]:
            logits = classifier.logits(pixel_values)
            return _outputs(logits, last_inputs, classifier.class_names, top_k, has_several)

        return predict_parts(
            source,
            lambda picture: (preprocessing(picture), None),
            predict,
            COLUMNS | (EMBEDDING if embeddings else {}),
            about,
            output=None if output is None else Path(output),
            part_size=part_size,
            batch_size=batch_size,
            num_workers=workers_per_rank(options) if num_workers is None else num_workers,
            describe=_likeliest,
        )


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


def _likeliest(row: dict[str, Any]) -> str:
    return "  ".join(f"{label} {score:.1%}" for label, score in zip(row["top_labels"], row["top_scores"], strict=True))
