# SPDX-License-Identifier: Apache-2.0
"""Objects in a picture: what is annotated, and what is predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svit_hf.errors import DataError
from svit_hf.tasks.pictures import Origin


# names that data sets give to the classes of objects, the usual one first
CATEGORY_FIELDS = ("category", "categories", "category_id", "label", "labels")
# of boxes that reach out of the picture: what rounding explains
MAX_OUTSIDE = 2.0
_OTHER_FORMATS = {"shares": "", "xywh": "The other format is 'xyxy'; ", "xyxy": "The other format is 'xywh'; "}


@dataclass
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: float64 `(N, 4)`, x1, y1, x2, y2 in pixels.
        labels: int64 `(N,)`, class indices.
        masks: bool `(N, H, W)`, if there are any.
        scores: float64 `(N,)` within 0 and 1, of predictions.
        crowd: bool `(N,)`, of annotations: whether several objects are annotated as one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: np.ndarray) -> "Objects":
        """Return some of the objects, by their places or by bools."""
        parts = [self.masks, self.scores, self.crowd]
        return Objects(
            self.boxes[chosen], self.labels[chosen], *(part if part is None else part[chosen] for part in parts)
        )


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """Return the boxes `(N, 4)` around masks `(N, H, W)`, of which none is empty."""
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def features_of_objects(labels: Sequence[str]) -> dict[str, Any]:
    """Return the features of `datasets` for what `stored_objects` returns."""
    import datasets

    return {
        "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(datasets.ClassLabel(names=list(labels))),
        "iscrowd": datasets.List(datasets.Value("bool")),
    }


def stored_objects(objects: Objects) -> dict[str, Any]:
    """Return annotated objects as the column `objects`; boxes are left, top, width, height."""
    boxes = np.concatenate([objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]], axis=1)
    crowd = [False] * len(objects) if objects.crowd is None else objects.crowd.tolist()
    return {"bbox": boxes.tolist(), "category": objects.labels.tolist(), "iscrowd": crowd}


def object_fields(row: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the column `objects` as lists per field, whichever way round it is stored.

    Raises:
        DataError: If it is missing, or its fields have different lengths.
    """
    objects = row.get("objects")
    if isinstance(objects, Mapping):
        fields = {name: values for name, values in objects.items() if values is not None}
    elif isinstance(objects, list) and all(isinstance(entry, Mapping) for entry in objects):
        fields = {name: [entry.get(name) for entry in objects] for name in (objects[0] if objects else {})}
    else:
        raise DataError(f"{origin}: the column `objects` is {str(objects)[:80]}; expected are lists per field.")
    lengths = {name: len(values) for name, values in fields.items() if isinstance(values, Sequence)}
    if len(lengths) < len(fields) or len(set(lengths.values())) > 1:
        raise DataError(f"{origin}: the fields of `objects` have different lengths: {lengths}.")
    return fields


def category_field(fields: Mapping[str, Any], num_objects: int, origin: Origin) -> list[Any]:
    """Return the classes among the fields of `objects`.

    Raises:
        DataError: If there is not one for each object.
    """
    found = next((list(fields[name]) for name in CATEGORY_FIELDS if name in fields), [])
    if len(found) != num_objects:
        raise DataError(
            f"{origin}: `objects` has {num_objects} objects and {len(found)} classes; the classes are looked for in "
            f"{list(CATEGORY_FIELDS)}."
        )
    return found


def class_indices(
    values: Sequence[Any], labels: Sequence[str], origin: Origin, names: Sequence[str] | None = None
) -> np.ndarray:
    """Return class indices `(N,)` of names or numbers.

    Args:
        values: One for each object.
        labels: Names of the classes.
        origin: Where they are from.
        names: What numbers mean, where the data say it; without it they are places in `labels`.

    Raises:
        DataError: If one is unknown.
    """
    indices = []
    for value in values:
        if names and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]  # noqa: PLW2901 - the same class, by its name
        if isinstance(value, str) and value in labels:
            indices.append(labels.index(value))
        elif isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < len(labels):
            indices.append(int(value))
        else:
            raise DataError(
                f"{origin}: an object has the class {value!r}; the classes are 0 to {len(labels) - 1}, {list(labels)}."
            )
    return np.array(indices, dtype=np.int64)


def corner_boxes(
    values: Sequence[Any], box_format: str, size: tuple[int, int], origin: Origin, clip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes `(N, 4)` of x1, y1, x2, y2 inside of a picture, and which of them are in it at all, bool `(N,)`.

    Args:
        values: Four numbers each, in pixels; shares of the picture if the format is "shares".
        box_format: "xywh" (corner, width, height), "xyxy" (two corners), or "shares" (centre, width, height, as in
            YOLO's files).
        size: Height and width of the picture.
        origin: Where the boxes are from.
        clip: Whether boxes may reach out of the picture by more than rounding explains, and be empty.

    Raises:
        DataError: If a box is no box, or, without `clip`, out of the picture or empty.
    """
    try:
        boxes = np.array([[float(number) for number in box] for box in values], dtype=np.float64).reshape(-1, 4)
        if len(boxes) != len(values) or not np.isfinite(boxes).all():
            raise ValueError("not four finite numbers each")
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin}: the boxes {str(list(values))[:200]} are not four numbers each: {error}") from error
    edges = np.array([size[1], size[0]] * 2)
    if box_format == "shares":
        boxes[:, :2] -= boxes[:, 2:] / 2
        boxes *= edges
    if box_format != "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    inside = np.clip(boxes, 0, edges)
    is_there = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    strange = ~is_there | (np.abs(inside - boxes).max(1, initial=0) > MAX_OUTSIDE)
    if strange.any() and not clip:
        place = int(np.flatnonzero(strange)[0])
        raise DataError(
            f"{origin}: object {place} has the box {list(values[place])} ({box_format}), which is empty or reaches "
            f"out of the image of {size[1]} x {size[0]} pixels. {_OTHER_FORMATS[box_format]}`clip_boxes` cuts boxes, "
            "and drops what is left empty."
        )
    return inside, is_there
