# SPDX-License-Identifier: Apache-2.0
"""Folders that load without this package: weights, configs, and the code of `svit_hf.model` beside them."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers.image_processing_utils import BaseImageProcessor

import svit_hf.model
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTPreTrainedModel


# saving a model registers the class that was saved and no other, so the map is written whole
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_svit.SViTConfig",
    "AutoModel": "modeling_svit.SViTModel",
    "AutoModelForImageClassification": "modeling_svit.SViTForImageClassification",
    "AutoBackbone": "modeling_svit.SViTBackbone",
}
IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_svit.SViTImageProcessor",
        "pil": "image_processing_pil_svit.SViTImageProcessorPil",
    }
}
AUTO_MAPS: dict[str, Mapping[str, object]] = {
    "config.json": MODEL_AUTO_MAP,
    "preprocessor_config.json": IMAGE_PROCESSOR_AUTO_MAP,
}


def save_with_code(
    model: SViTPreTrainedModel, directory: str | os.PathLike[str], image_processor: BaseImageProcessor | None = None
) -> None:
    """Save a model so that `trust_remote_code=True` loads it where `svit_hf` is not installed.

    Whatever class the model is, the folder serves all Auto classes: config, model, classifier, backbone and both image
    processors. Where `svit_hf` is imported, its own classes are used instead of the copied ones.

    Args:
        model: Any SViT model.
        directory: Folder to write to, made if it is not there.
        image_processor: What prepares the images; by default the official evaluation transform at
            `model.config.image_size`.

    Raises:
        TypeError: If `model` is no SViT model.

    Example:
        >>> import tempfile
        >>> from svit_hf import SViTConfig, SViTForImageClassification, save_with_code
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_with_code(SViTForImageClassification(SViTConfig(num_labels=10)), directory)
    """
    if not isinstance(model, SViTPreTrainedModel):
        raise TypeError(f"`model` is a {type(model).__name__}; expected is an SViT model.")
    directory = Path(directory)
    model.save_pretrained(directory)
    (image_processor or _default_image_processor(model.config)).save_pretrained(directory)
    for name, auto_map in AUTO_MAPS.items():
        path = directory / name
        path.write_text(with_auto_map(path.read_text(encoding="utf-8"), auto_map), encoding="utf-8")
    for source in code_files():
        shutil.copyfile(source, directory / source.name)


def code_files() -> list[Path]:
    """Return the files that a folder has to hold to load without this package."""
    return sorted(Path(svit_hf.model.__path__[0]).glob("*_svit.py"))


def with_auto_map(content: str, auto_map: Mapping[str, object]) -> str:
    """Return the JSON text of a config that names the classes in these files."""
    return json.dumps(json.loads(content) | {"auto_map": auto_map}, indent=2, sort_keys=True) + "\n"


def _default_image_processor(config: SViTConfig) -> SViTImageProcessorPil:
    size = config.image_size
    if isinstance(size, int):
        return SViTImageProcessorPil(size={"shortest_edge": size})
    return SViTImageProcessorPil(size={"height": size[0], "width": size[1]})
