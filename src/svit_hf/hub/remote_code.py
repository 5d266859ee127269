# SPDX-License-Identifier: Apache-2.0
"""Folders that load without this package: weights, configs, and the code of `svit_hf.model` beside them."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import VIDEO_PROCESSOR_NAME

from svit_hf.files import files_into, write_text
from svit_hf.hub.probe import write_probe
from svit_hf.model.configuration_svit import MODEL_AUTO_MAP, SViTConfig
from svit_hf.model.configuration_video_svit import VIDEO_PROCESSOR_AUTO_MAP, SViTVideoConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.image_transforms_svit import BACKENDS
from svit_hf.model.modeling_svit import SViTPreTrainedModel
from svit_hf.model.own_code_svit import code_files


__all__ = ["AUTO_MAPS", "code_files", "default_image_processor", "save_with_code", "with_auto_map"]

IMAGE_PROCESSOR_AUTO_MAP = {"AutoImageProcessor": BACKENDS}
AUTO_MAPS: dict[str, Mapping[str, object]] = {
    "config.json": MODEL_AUTO_MAP,
    "preprocessor_config.json": IMAGE_PROCESSOR_AUTO_MAP,
}


def save_with_code(
    model: SViTPreTrainedModel, directory: str | os.PathLike[str], image_processor: BaseImageProcessor | None = None
) -> None:
    """Save a model so that `trust_remote_code=True` loads it where `svit_hf` is not installed.

    Whatever class the model is, the folder serves all Auto classes: config, model, classifier, backbone and both image
    processors; for a video model config, model, classifier, and the processors of videos and of frames. Where
    `svit_hf` is imported, its own classes are used instead of the copied ones; what they save again has the code too.
    A probe (`svit_hf.hub.probe`) lies beside the weights. Nothing is in the folder before all of it
    is written.

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
    processor: Any = copy.deepcopy(image_processor or default_image_processor(model.config))
    processor.auto_map = IMAGE_PROCESSOR_AUTO_MAP
    with files_into(directory) as folder:
        with _auto_map_of(model):
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if isinstance(model.config, SViTVideoConfig):
            _write_video_processor(processor, model.config, folder)
        write_probe(model, folder)
        written = {directory / file.name for file in folder.iterdir()}
    # weights of an earlier model in more files, or in fewer, would be loaded instead
    for stale in {*directory.glob("model*.safetensors*")} - written:
        stale.unlink()


@contextmanager
def _auto_map_of(model: SViTPreTrainedModel) -> Iterator[None]:
    """Let a model be saved with its code, this once."""
    before = getattr(model.config, "auto_map", None)
    model.config.auto_map = model.config.code_auto_map
    try:
        yield
    finally:
        model.config.auto_map = before
        if before is None:
            del model.config.auto_map


def _write_video_processor(processor: BaseImageProcessor, config: SViTVideoConfig, folder: Path) -> None:
    """Write the settings of an image processor as those of the video processor, which needs torchvision itself."""
    content = {key: value for key, value in processor.to_dict().items() if not key.startswith("image_processor")}
    content |= {"video_processor_type": "SViTVideoProcessor", "num_frames": config.num_frames}
    write_text(folder / VIDEO_PROCESSOR_NAME, with_auto_map(json.dumps(content), VIDEO_PROCESSOR_AUTO_MAP))


def with_auto_map(content: str, auto_map: Mapping[str, object]) -> str:
    """Return the JSON text of a config that names the classes in these files."""
    return json.dumps(json.loads(content) | {"auto_map": auto_map}, indent=2, sort_keys=True) + "\n"


def default_image_processor(config: SViTConfig) -> SViTImageProcessorPil:
    """Return the official evaluation transform at a model's size, with the mean of ImageNet's colours for grey."""
    size = config.image_size
    kwargs: dict[str, Any] = {"size": {"shortest_edge": size}}
    if not isinstance(size, int):
        kwargs["size"] = {"height": size[0], "width": size[1]}
    if config.num_channels == 1:
        kwargs |= {
            "image_mean": [sum(IMAGENET_DEFAULT_MEAN) / 3],
            "image_std": [sum(IMAGENET_DEFAULT_STD) / 3],
        }
    return SViTImageProcessorPil(**kwargs)
