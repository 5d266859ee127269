# SPDX-License-Identifier: Apache-2.0
"""Saved models for dense tasks: a folder, or an id of the Hub, becomes a task and a model again."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import class_names, download, find_model, load_image_processor, load_model
from svit_hf.tasks import task_class
from svit_hf.tasks.heads import HEADS, IMAGENET_MEAN, IMAGENET_STD, Head
from svit_hf.tasks.models import TASK_FIELD, check_image_size
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.tasks.task import DenseTask


# what heads say of each picture; a head has some of them
OUTPUTS = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")


@dataclass(frozen=True)
class TaskModel:
    """A model and the task that it is for.

    Attributes:
        task: Labels, size and head are those of the model.
        model: In evaluation mode, in float32.
        location: Where it was loaded from.
    """

    task: DenseTask
    model: PreTrainedModel
    location: str

    def draw(self, picture: Image.Image) -> Image.Image:
        """Return a picture with what the model says of it drawn on it."""
        return self.task.draw(picture, self.task.predict(self.model, [picture])[0])


def dense_head(location: str) -> Head | None:
    """Return the head for dense tasks that a folder or an id of the Hub holds; none if it is another model.

    What has no config that can be read is none; whoever loads it says what is wrong.
    """
    try:
        return _head_of(AutoConfig.from_pretrained(location))
    # what damaged files, impossible ids and the network make of it
    except Exception:
        return None


def open_task_model(
    location: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    *,
    task: str | None = None,
    annotations: AnnotationOptions | None = None,
) -> TaskModel:
    """Open what `build_model` made and `save_pretrained` wrote, with its image processor beside it.

    Args:
        location: A folder, an id of the Hub, or the folder of a training run, whose finished model it is then.
        device: Where to compute.
        task: Name of the task, where the config does not say for which of its tasks a head was trained.
        annotations: How annotations are to be read.

    Raises:
        SViTError: If it is no such model, a weight is missing, or its image processor does not prepare pictures as the
            task does.
    """
    location = find_model(os.fspath(location))
    folder = download(location)
    head, _, name, size = read_head(folder, task, location)
    kind = task_class(name)
    model = load_model(folder, device, head.model_class)
    return TaskModel(kind(class_names(model), size, head.name, annotations=annotations), model, location)


def read_head(
    folder: str | os.PathLike[str], task: str | None = None, location: str | None = None
) -> tuple[Head, PreTrainedConfig, str, tuple[int, int]]:
    """Read what a saved model is, without its weights; `location` is what messages call it.

    Returns:
        The head, its config, the name of the task, and height and width of the images.

    Raises:
        SViTError: As `open_task_model`.
    """
    folder = os.fspath(folder)
    location = location or folder
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    # whatever a damaged file raises
    except Exception as error:
        raise SViTError(f"`model` is {location!r}, whose config cannot be read: {error}") from error
    head = _head_of(config)
    if head is None:
        raise SViTError(
            f"`model` is {location!r}, of type {config.model_type!r}; a model for segmentation or detection is of one "
            f"of the types {', '.join(head.config_class.model_type for head in HEADS.values())}, as "
            "`svit_hf.build_model` makes them."
        )
    name = _task_name(config, head, location, task)
    return head, config, name, _image_size(load_image_processor(folder), location)


def _head_of(config: PreTrainedConfig) -> Head | None:
    return next((head for head in HEADS.values() if isinstance(config, head.config_class)), None)


def _task_name(config: PreTrainedConfig, head: Head, location: str, wanted: str | None) -> str:
    noted = getattr(config, TASK_FIELD, None)
    name = wanted or noted or (head.tasks[0] if len(head.tasks) == 1 else None)
    if name not in head.tasks or (noted and name != noted):
        known = [noted] if noted else list(head.tasks)
        raise SViTError(
            f"`model` is {location!r}, with the head {head.name!r}, and `task` is {wanted!r}; allowed is "
            f"{' or '.join(map(repr, known))}."
        )
    return name


def _image_size(processor: Any, location: str) -> tuple[int, int]:
    """Return height and width of what an image processor makes, in pixels.

    Raises:
        SViTError: If it does not make what tasks do: the whole picture, resized, with ImageNet's normalisation.
    """
    size = dict(processor.size or {})
    expected = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "do_resize": True, "do_normalize": True}
    found: dict[str, Any] = {name: getattr(processor, name, None) for name in expected}
    found |= {name: list(value) for name, value in found.items() if isinstance(value, tuple)}
    if found != expected or not {"height", "width"} <= size.keys():
        raise SViTError(
            f"`model` is {location!r}, whose image processor has size={size}, {found}; models for segmentation and "
            f"detection take the whole picture, resized to a height and a width, with {expected}."
        )
    return check_image_size((size["height"], size["width"]))
