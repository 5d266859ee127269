# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection: one file per task, which is the whole answer to what the task needs.

`svit_hf.tasks.task` says what a task has to answer, `svit_hf.tasks.models` builds its models. Importing this folder
lets the Auto classes load such models without trusting the code beside their weights.
"""

from importlib import import_module

from svit_hf.errors import SViTError
from svit_hf.tasks.models import build_model, load_backbone
from svit_hf.tasks.task import DenseTask


__all__ = ["TASKS", "DenseTask", "build_model", "load_backbone", "task_class"]

# name of the task: its file, and its class there
TASKS = {
    "semantic_segmentation": "SemanticSegmentation",
    "instance_segmentation": "InstanceSegmentation",
    "detection": "Detection",
}


def task_class(name: str) -> type[DenseTask]:
    """Return the class of a task, by name.

    Raises:
        SViTError: If there is none.
    """
    if name not in TASKS:
        raise SViTError(f"`task` is {name!r}; allowed are {list(TASKS)}.")
    found: type[DenseTask] = getattr(import_module(f"svit_hf.tasks.{name}"), TASKS[name])
    return found
