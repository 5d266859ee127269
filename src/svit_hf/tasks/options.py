# SPDX-License-Identifier: Apache-2.0
"""How annotations are to be read, which files do not say themselves, and what a recipe says of its task."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from svit_hf.errors import SViTError
from svit_hf.option_fields import JsonObject, check_options, option


# column that is true in rows with annotations as tasks store them, to which options were applied before
IS_STORED = "svit_is_stored"

TaskName = Literal["semantic_segmentation", "instance_segmentation", "detection"]


@dataclass(frozen=True)
class AnnotationOptions:
    """How annotations are to be read.

    Args:
        is_binary: Semantic segmentation: every value of a mask but 0 is class 1, as in masks of 0 and 255 and in masks
            of instances.
        reduce_labels: Semantic segmentation: 0 in a mask is no class but ignored, and class 0 is stored as 1, as in
            ADE20K.
        box_format: Detection: `bbox` is left, top, width, height (xywh, as in COCO) or two corners (xyxy), in pixels;
            files of YOLO have their own.
        clip_boxes: Detection: boxes may reach out of their image, and be empty: they are cut, and dropped.
    """

    is_binary: bool = False
    reduce_labels: bool = False
    box_format: Literal["xywh", "xyxy"] = "xywh"
    clip_boxes: bool = False

    def __post_init__(self) -> None:
        check_options(self)

    def require_known(self, known: Collection[str], task: str) -> None:
        """Refuse options that say nothing about a task.

        Raises:
            SViTError: If one that is not in `known` is not its default.
        """
        for item in fields(self):
            if item.name not in known and (value := getattr(self, item.name)) != item.default:
                raise SViTError(f"`{item.name}` is {value!r}; the task {task!r} does not know it.")


@dataclass(frozen=True)
class TaskOptions:
    """What is predicted. All but `name` is for segmentation and detection.

    Args:
        name: Classification of images, or a task that puts a head on the model.
        head: The head, by name; empty for the one that is usual for the task.
        width: Channels of the head, a multiple of 32; 0 for as many as the head was published with.
        head_options: More fields of the head's config, such as `num_queries`.
        labels: Names of the classes, in the order of their numbers; empty for those that the data name.
        annotations: How annotations are to be read.
        crop_size: Edge of the training examples in pixels, where it is smaller than `model.image_size`; 0 if not. Not
            for detection, whose boxes are shares of the image.
        vertical_flip: Probability of a training example upside down.
        quarter_turn: Probability of one turned by a quarter, to the left or to the right: with both flips, pictures
            that have no upper side are seen in all eight ways.
        min_visible: Objects of which a smaller share is inside of a random crop are not there.
    """

    name: Literal["classification", TaskName] = "classification"
    head: str = ""
    width: int = option(0, at_least=0)
    head_options: JsonObject = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    annotations: AnnotationOptions = field(default_factory=AnnotationOptions)
    crop_size: int = option(0, at_least=0)
    vertical_flip: float = option(0.0, at_least=0, at_most=1)
    quarter_turn: float = option(0.0, at_least=0, at_most=1)
    min_visible: float = option(0.3, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        check_options(self, "task")

    def changed(self) -> Mapping[str, Any]:
        """Return the options that are not what they are by default, without the name."""
        default = TaskOptions()
        values = {name: value for name, value in vars(self).items() if name != "name"}
        return {name: value for name, value in values.items() if value != getattr(default, name)}
