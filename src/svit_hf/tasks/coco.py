# SPDX-License-Identifier: Apache-2.0
"""COCO's annotation files, and its run-length encoded masks, by `faster-coco-eval` (the extra `dense`)."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from svit_hf.errors import DataError, SViTError
from svit_hf.extras import install_hint
from svit_hf.tasks.pictures import Origin
from svit_hf.tasks.rows import read_json, split_names
from svit_hf.tasks.task import Rows


def coco_rows(path: Path, split: str) -> Rows | None:
    """Read a split that is annotated in COCO's JSON.

    Looked for, SPLIT being "validation" or "val" and so on: annotations/instances_SPLIT*.json with the pictures in
    SPLIT*/ or images/; SPLIT/_annotations.coco.json with the pictures beside it; SPLIT.json with the pictures in
    SPLIT/ or images/.

    Returns:
        Rows with the columns `image`, `width`, `height` and `objects`, whose fields are `bbox`, `category` (a name),
        `iscrowd` and `segmentation`; or None if there is no such file.

    Raises:
        DataError: If the file is not what COCO's are.
    """
    for name in split_names(split):
        inside = path / name / "_annotations.coco.json"
        files = [inside, path / f"{name}.json", *sorted(path.glob(f"annotations/instances_{name}*.json"))]
        for file in files:
            if file.is_file():
                return read_coco(file, _picture_folder(path, file, name))
    return None


def read_coco(file: Path, folder: Path) -> Rows:
    """Read one of COCO's annotation files, for the pictures in `folder`."""
    content = read_json(file)
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        images = sorted(content["images"], key=lambda entry: entry["id"])
        names = {entry["id"]: str(entry["file_name"]) for entry in images}
        objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in content.get("annotations", []):
            objects[entry["image_id"]].append(entry)
            if entry["category_id"] not in categories:
                raise DataError(
                    f"{file}, annotation {entry.get('id')}: its category_id is {entry['category_id']!r}; the file's "
                    f"categories are {categories}."
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is no COCO file: {type(error).__name__}: {error}") from error
    if len(names) < len(images):
        raise DataError(f"{file}: two images have the same id.")
    if unknown := sorted(objects.keys() - names.keys(), key=str):
        raise DataError(f"{file}: annotations are about image {unknown[0]!r}, which the file does not have.")

    def load(index: int) -> Mapping[str, Any]:
        image, own = images[index], objects[images[index]["id"]]
        return {
            "image": _inside(folder, names[image["id"]], file),
            "width": image.get("width"),
            "height": image.get("height"),
            "objects": {
                "bbox": [entry.get("bbox") for entry in own],
                "category": [categories[entry["category_id"]] for entry in own],
                "iscrowd": [bool(entry.get("iscrowd", 0)) for entry in own],
                "segmentation": [entry.get("segmentation") for entry in own],
            },
        }

    # COCO numbers its categories with gaps: the order of the numbers is that of the classes
    labels = [categories[number] for number in sorted(categories)]
    return Rows([Origin(file.name, names[image["id"]]) for image in images], load, labels, [file])


def import_coco() -> Any:
    """Return the package `faster_coco_eval`.

    Raises:
        SViTError: If it is missing.
    """
    try:
        import faster_coco_eval
    except ImportError as error:
        raise SViTError(
            f"masks of objects and average precision need faster-coco-eval; install it with: {install_hint('dense')}"
        ) from error
    return faster_coco_eval


def decode_segmentation(segmentation: Any, size: tuple[int, int], origin: Origin) -> np.ndarray:
    """Return polygons, or a run-length code as a list of counts or in COCO's letters, as bool `(H, W)`.

    Raises:
        DataError: If it is neither, or for another size.
    """
    masks = import_coco().mask
    try:
        if not isinstance(segmentation, Mapping):
            _check_polygons(segmentation, size)
        elif [int(edge) for edge in segmentation["size"]] != list(size):
            raise ValueError(f"the run-length code has the size {list(segmentation['size'])}, the image {list(size)}")
        decoded: np.ndarray = masks.decode(masks.segmToRle(segmentation, size[1], size[0])).astype(bool)
    # the last one of what the library cannot read as numbers
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise DataError(
            f"{origin}: a segmentation cannot be used: {error}; expected are polygons, lists of x1, y1, x2, y2, ... "
            f"of at least three points, or a run-length code of size {list(size)}."
        ) from error
    return decoded


def encode_run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a bool mask `(H, W)` as COCO's run-length code, in letters."""
    code = import_coco().mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(edge) for edge in mask.shape], "counts": code["counts"].decode("ascii")}


def _check_polygons(polygons: Any, size: tuple[int, int]) -> None:
    if not isinstance(polygons, list) or not polygons:
        raise ValueError(f"it is {polygons!r}")
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon has {points.size} numbers")
        if np.abs(points).max() > 2 * max(size):
            raise ValueError(f"a polygon reaches {np.abs(points).max():.3g} pixels far")


def _picture_folder(path: Path, file: Path, name: str) -> Path:
    if file.parent.name == name:
        return file.parent
    candidates = [path / file.stem.removeprefix("instances_"), path / name, path / "images" / name, path / "images"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(f"{file}: its pictures are in none of {[str(folder) for folder in candidates]}.")


def _inside(folder: Path, name: str, file: Path) -> Path:
    picture = folder / name
    try:
        is_inside = picture.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {name!r} is no name of a file: {error}") from error
    if not is_inside:
        raise DataError(f"{file}: {name!r} is outside of the folder of the pictures.")
    return picture
