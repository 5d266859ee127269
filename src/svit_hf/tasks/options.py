# SPDX-License-Identifier: Apache-2.0
"""What has to be said about annotations, because files do not say it themselves."""

from dataclasses import dataclass, fields
from inspect import signature
from typing import Any, Literal

from svit_hf.errors import SViTError
from svit_hf.tasks.task import DenseTask


TaskName = Literal["semantic_segmentation", "instance_segmentation", "detection"]


@dataclass(frozen=True)
class AnnotationOptions:
    """How annotations are to be read.

    Args:
        is_binary: Semantic segmentation: every value of a mask but 0 is class 1, as in masks of 0 and 255 and in masks
            of instances.
        reduce_labels: Semantic segmentation: 0 in a mask is no class but ignored, and class 0 is stored as 1, as in
            ADE20K.
        box_format: Detection: `bbox` is left, top, width, height (xywh, as in COCO) or two corners (xyxy), in pixels.
        clip_boxes: Detection: boxes may reach out of their image, and be empty: they are cut, and dropped.
    """

    is_binary: bool = False
    reduce_labels: bool = False
    box_format: Literal["xywh", "xyxy"] = "xywh"
    clip_boxes: bool = False

    def of(self, task: type[DenseTask]) -> dict[str, Any]:
        """Return those that a task takes, as its keyword arguments.

        Raises:
            SViTError: If another one is not its default.
        """
        taken = signature(task).parameters
        for field in fields(self):
            if field.name not in taken and (value := getattr(self, field.name)) != field.default:
                raise SViTError(f"`{field.name}` is {value!r}; the task {task.name!r} does not know it.")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in taken}
