# SPDX-License-Identifier: Apache-2.0
"""Find the weights that a user means, and load them as a classifier with its image processor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModelForImageClassification
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from svit_hf.errors import SViTError, listed


RAW, EMA = "raw", "ema"
CONFIG = "config.json"
MODEL_FILES = ("*.json", "*.safetensors")


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
    if _has_model(folder) or not folder.exists():
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


def download(location: str) -> str:
    """Return the folder of a model, which is downloaded if `location` is an id of the Hub.

    Raises:
        SViTError: If it cannot be downloaded.
    """
    if Path(location).exists():
        return location
    try:
        return snapshot_download(location, allow_patterns=list(MODEL_FILES))
    # an impossible id, no such repository, no network, no disk
    except Exception as error:
        raise SViTError(f"`model` is {location!r}, neither a folder nor a model of the Hub: {error}") from error


def load_classifier(location: str, device: torch.device | str) -> PreTrainedModel:
    """Load a classifier in float32, in eval mode; see `load_model`."""
    return load_model(location, device, AutoModelForImageClassification)


def load_model(location: str, device: torch.device | str, model_class: Any) -> PreTrainedModel:
    """Load a model of a class of Transformers, or of one of its Auto classes, in float32, in eval mode.

    Raises:
        SViTError: If it cannot be loaded, or some of its weights are not there.
    """
    loaded, differences = load_and_compare(location, model_class)
    require_weights(location, differences.get("missing", []))
    model: Any = loaded
    take_out_of_file(model)
    moved: PreTrainedModel = model.to(device).eval()
    return moved


def take_out_of_file(model: nn.Module) -> None:
    """Copy weights that were just loaded.

    In the file, tensors begin at any byte, and the last digits of a matrix product depend on where its operands lie;
    and whoever changes the file would change the model.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def require_weights(location: str, missing: Sequence[str], argument: str = "model") -> None:
    """Refuse a model of whose weights some are not in its file.

    Raises:
        SViTError: If it is so.
    """
    if missing:
        raise SViTError(
            f"`{argument}` is {location!r}, whose file of weights lacks {len(missing)} of the model, such as "
            f"{listed(missing)}: they would be random numbers. `svit-hf doctor {location}` tells more."
        )


def load_and_compare(
    location: str, model_class: Any = AutoModelForImageClassification, argument: str = "model", **fields: Any
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """Load a model in float32, and compare the names of its weights with those in the file.

    Args:
        location: A folder or an id of the Hub.
        model_class: A class of Transformers.
        argument: What the user named the location by.
        **fields: Fields of the config to use instead of those of the folder.

    Returns:
        The model, and the names that are `missing` in the file, `unexpected`, or `of another shape`, if there are any.

    Raises:
        SViTError: If it cannot be loaded.
    """
    try:
        loaded: Any = model_class.from_pretrained(location, dtype=torch.float32, output_loading_info=True, **fields)
    # damaged files make Transformers, safetensors, huggingface_hub and the model raise whatever they come to
    except Exception as error:
        what = "a classifier" if model_class is AutoModelForImageClassification else f"a {model_class.__name__}"
        raise SViTError(
            f"`{argument}` is {location!r}, which cannot be loaded as {what}: {type(error).__name__}: {error}"
        ) from error
    model, info = loaded
    differences = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another shape": {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]},
    }
    return model, {kind: sorted(names) for kind, names in differences.items() if names}


def load_image_processor(location: str, argument: str = "model") -> Any:
    """Load an image processor on Pillow, which gives the same bits everywhere.

    Raises:
        SViTError: If there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(location, backend="pil")
    # as above
    except Exception as error:
        raise SViTError(
            f"`{argument}` is {location!r}, whose image processor cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def class_names(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's classes in their order."""
    names: dict[Any, str] = model.config.id2label or {}
    return [names[number] for number in sorted(names)]


def _has_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file()
