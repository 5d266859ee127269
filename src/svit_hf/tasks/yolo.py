# SPDX-License-Identifier: Apache-2.0
"""Folders as YOLO has them: a text file of boxes beside every picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svit_hf.errors import DataError
from svit_hf.tasks.pictures import Origin
from svit_hf.tasks.rows import BOX_FORMAT, CLASS_NAMES, folder_pairs, pictures_in, read_labels
from svit_hf.tasks.task import Rows


def yolo_rows(path: Path, split: str) -> Rows | None:
    """Read a split from `images` and `labels`, as `folder_pairs` finds them; a picture without a file has no objects.

    The names of the classes are those of `data.yaml` or `classes.txt`.

    Returns:
        Rows with the columns `image` and `objects`, whose fields are `bbox` (shares of the picture) and `category`; or
        None if there are no such folders.

    Raises:
        DataError: If a line is not a class and four shares of the picture's width and height.
    """
    folders = folder_pairs(path, split, "labels")
    if folders is None:
        return None
    files = pictures_in(folders[0])

    def load(index: int) -> Mapping[str, Any]:
        objects = _read_boxes(folders[1] / f"{files[index].stem}.txt")
        return {"image": files[index], "objects": objects, CLASS_NAMES: labels, BOX_FORMAT: "shares"}

    labels = read_labels(path)
    boxes = [file for file in (folders[1] / f"{picture.stem}.txt" for picture in files) if file.is_file()]
    return Rows([Origin(file.name, "the whole picture") for file in files], load, labels, boxes)


def _read_boxes(file: Path) -> dict[str, list[Any]]:
    boxes, categories = [], []
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the file cannot be read: {error}") from error
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            label, *shares = line.split()
            box = [float(share) for share in shares]
            if len(box) != 4:
                raise ValueError(f"it has {len(box)} numbers after the class")
            categories.append(int(label))
        except ValueError as error:
            raise DataError(
                f"{file.name}, row {number}: {line[:80]!r} is not a class and four numbers; polygons are read from "
                "COCO's JSON."
            ) from error
        boxes.append(box)
    return {"bbox": boxes, "category": categories}
