# SPDX-License-Identifier: Apache-2.0
"""Find the weights that a user means, and load them as a classifier with its image processor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForImageClassification
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from svit_hf.errors import SViTError


WeightsName = Literal["raw", "ema"]
RAW, EMA = "raw", "ema"
CONFIG = "config.json"


def find_weights(model: str, wanted: str | None = None) -> dict[str, str]:
    """Return where weights are, by their name.

    Args:
        model: A folder with a config and weights, or an id of the Hub, both of which have one set of weights, called
            `model`; or a folder of a training run, a checkpoint in it, or its `best`, which have `raw` and `ema`.
        wanted: `raw` or `ema` for one of them alone; all that there are if `None`.

    Raises:
        SViTError: If there are none, or not the wanted ones.
    """
    folder = Path(model)
    if (folder / CONFIG).is_file() or not folder.exists():
        found = {"model": model}
    else:
        parents = [folder / "best", folder]
        sets = [{name: str(parent / name) for name in (RAW, EMA) if _has_model(parent / name)} for parent in parents]
        found = next(filter(None, sets), {})
    if not found:
        raise SViTError(
            f"`model` is {model!r}, a folder with neither a {CONFIG} nor a run's {RAW} or {EMA} weights in it."
        )
    if wanted is not None and wanted not in found:
        raise SViTError(f"`weights` is {wanted!r}, but {model!r} has only {' and '.join(found)}; leave it out.")
    return found if wanted is None else {wanted: found[wanted]}


def find_model(model: str, wanted: str | None = None) -> str:
    """Return where the one set of weights is that a user means.

    Of a run it is the finished model, unless `wanted` is `raw` or `ema`.

    Raises:
        SViTError: If there is none, or it is not clear which.
    """
    finished = Path(model) / "model"
    if wanted is None and _has_model(finished):
        return str(finished)
    found = find_weights(model, wanted)
    if len(found) > 1:
        raise SViTError(f"{model!r} has {' and '.join(found)} weights; `weights` says which of them to take.")
    return next(iter(found.values()))


def load_classifier(location: str, device: torch.device | str) -> PreTrainedModel:
    """Load a classifier in float32, in eval mode.

    Raises:
        SViTError: If it cannot be loaded.
    """
    try:
        model: Any = AutoModelForImageClassification.from_pretrained(location, dtype=torch.float32)
    # what Transformers raises for missing files, impossible ids and models of another kind
    except (OSError, ValueError) as error:
        raise SViTError(f"`model` is {location!r}, which cannot be loaded as a classifier: {error}") from error
    classifier: PreTrainedModel = model.to(device).eval()
    return classifier


def load_image_processor(location: str) -> Any:
    """Load an image processor on Pillow, which gives the same bits everywhere.

    Raises:
        SViTError: If there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(location, backend="pil")
    except (OSError, ValueError) as error:
        raise SViTError(f"`model` is {location!r}, which has no image processor that can be used: {error}") from error


def class_names(id2label: Mapping[int, str]) -> list[str]:
    """Return the names of a model's classes in their order."""
    return [id2label[number] for number in sorted(id2label)]


def _has_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file()
