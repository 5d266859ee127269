# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision of boxes and masks, by `faster-coco-eval` (the extra `dense`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from svit_hf.errors import SViTError
from svit_hf.tasks.coco import encode_run_lengths, import_coco
from svit_hf.tasks.objects import Objects
from svit_hf.tasks.task import Metric, Sample, Truth


# places in COCO's list of twelve numbers
_SUMMARY = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}
MAX_DETECTIONS = 100


class AveragePrecision(Metric):
    """Average precision over overlaps from 0.5 to 0.95, as COCO defines it.

    What is kept of a picture are its objects, masks as run-length codes; each picture counts once, however often and
    by however many ranks it is given. Objects in a crowd are neither found nor missed.

    Args:
        labels: Names of the classes.
        of_masks: Whether masks overlap, or boxes.
    """

    log_fields = ("map", "map_50", "map_75")

    def __init__(self, labels: Sequence[str], of_masks: bool):
        self.labels, self.of_masks = list(labels), of_masks
        self.pictures: dict[int, dict[str, Any]] = {}

    def update(self, index: int, prediction: Objects, sample: Sample | Truth) -> None:
        """Keep the objects of a picture, true and predicted; of the latter the 100 with the highest scores."""
        assert prediction.scores is not None
        best = np.argsort(-prediction.scores, kind="stable")[:MAX_DETECTIONS]
        self.pictures[index] = {
            "size": sample.size,
            "true": self._entries(sample.target),
            "predicted": self._entries(prediction.select(best)),
        }

    def state(self) -> dict[int, dict[str, Any]]:
        """Return the objects by picture."""
        return self.pictures

    def merge(self, state: dict[int, dict[str, Any]]) -> None:
        """Add the objects of other pictures."""
        self.pictures.update(state)

    def compute(self) -> dict[str, float]:
        """Return `map`, `map_50`, `map_75`, `map_small` and so on, `mar_100`, and `map_LABEL` for each class.

        The last ones are named by `map_of_class`. What no object decides, such as `map_small` without small objects,
        is nan.

        Raises:
            SViTError: If no picture was counted, or `faster-coco-eval` is missing.
        """
        if not self.pictures:
            raise SViTError("no picture was counted.")
        coco = import_coco()
        # in one order, whatever rank came first
        ordered = sorted(self.pictures)
        images = [
            {"id": index, "height": self.pictures[index]["size"][0], "width": self.pictures[index]["size"][1]}
            for index in ordered
        ]
        categories = [{"id": number, "name": label} for number, label in enumerate(self.labels)]
        true = self._numbered(ordered, "true")
        predicted = self._numbered(ordered, "predicted")
        truth = coco.COCO({"images": images, "categories": categories, "annotations": true})
        if not true or not predicted:
            value = float("nan") if not true else 0.0
            return dict.fromkeys([*_SUMMARY, *map(map_of_class, self.labels)], value)
        evaluation = coco.COCOeval_faster(truth, truth.loadRes(predicted), iouType="segm" if self.of_masks else "bbox")
        evaluation.run()
        numbers = {name: _number(evaluation.stats[place]) for name, place in _SUMMARY.items()}
        # (overlaps, recalls, classes, areas, counts): all areas, 100 detections
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for number, label in enumerate(self.labels):
            of_class = precision[:, :, number]
            numbers[map_of_class(label)] = _number(of_class[of_class > -1].mean() if (of_class > -1).any() else -1)
        return numbers

    def _entries(self, objects: Objects) -> list[dict[str, Any]]:
        entries = []
        for place, (corners, label) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
            x, y, right, bottom = (float(value) for value in corners)
            entry: dict[str, Any] = {
                "bbox": [x, y, right - x, bottom - y],
                "area": (right - x) * (bottom - y),
                "category_id": int(label),
                "iscrowd": int(objects.crowd[place]) if objects.crowd is not None else 0,
            }
            if objects.scores is not None:
                entry["score"] = float(objects.scores[place])
            if self.of_masks:
                assert objects.masks is not None
                entry["segmentation"] = encode_run_lengths(objects.masks[place])
                entry["area"] = int(objects.masks[place].sum())
            entries.append(entry)
        return entries

    def _numbered(self, ordered: list[int], which: str) -> list[dict[str, Any]]:
        entries = [{**entry, "image_id": index} for index in ordered for entry in self.pictures[index][which]]
        return [{**entry, "id": number} for number, entry in enumerate(entries, 1)]


def map_of_class(label: str) -> str:
    """Return the name of the number for a class: `map_LABEL`, or `map_class_LABEL` where COCO has another of that."""
    name = f"map_{label}"
    return f"map_class_{label}" if name in _SUMMARY else name


def _number(value: Any) -> float:
    # COCO writes -1 where there is nothing to judge
    return float(value) if value > -1 else float("nan")
