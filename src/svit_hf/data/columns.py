# SPDX-License-Identifier: Apache-2.0
"""Which columns hold the images and the labels, and what the labels are called."""

from collections.abc import Iterable
from typing import Any

import datasets

from svit_hf.errors import DataError, SViTError


IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "category")

# integers beyond it are ids of something else than classes
MAX_UNNAMED_CLASSES = 100_000


def find_image_column(features: datasets.Features, named: str | None) -> str:
    """Return the column of the images: the named one, or the only one there is.

    Raises:
        SViTError: If there is none, or one of several.
    """
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    usual = [name for name in features if name.lower() in IMAGE_NAMES]
    return _choose("image_column", named, typed or usual, features)


def find_label_column(features: datasets.Features, named: str | None) -> str:
    """Return the column of the labels: the named one, or the only one there is.

    `json.label` is the field `label` of the column `json`.

    Raises:
        SViTError: If there is none, or one of several.
    """
    if named and "." in named and named not in features:
        field_of(features, named)
        return named
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name, feature in features.items() if name.lower() in LABEL_NAMES and _is_plain(feature)]
    return _choose("label_column", named, typed or usual, features)


def _is_plain(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.rstrip("0123456789") in ("int", "uint", "string")


def _choose(argument: str, named: str | None, found: list[str], features: datasets.Features) -> str:
    if named is not None:
        if named not in features:
            raise SViTError(f"`{argument}` is {named!r}, which is no column; there are {', '.join(features)}.")
        return named
    if len(found) == 1:
        return found[0]
    what = f"could be any of {', '.join(found)}" if found else f"is none of {', '.join(features)} for sure"
    raise SViTError(f"`{argument}` {what}; name it.")


def field_of(row: Any, name: str) -> Any:
    """Return a column of a row, or a field inside it.

    Raises:
        SViTError: If it is not there.
    """
    if name in row:
        return row[name]
    value = row
    for part in name.split("."):
        try:
            value = value[part]
        except (KeyError, TypeError) as error:
            raise SViTError(f"`label_column` is {name!r}, but there is no field {part!r}.") from error
    return value


def names_in_features(features: datasets.Features, label_column: str) -> tuple[str, ...] | None:
    """Return the names of the classes, in order, if the features know them."""
    feature = field_of(features, label_column)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def names_of_labels(labels: Iterable[Any], source: str) -> tuple[str, ...]:
    """Name the classes after the labels that there are: strings in alphabetical order, integers by their number.

    Raises:
        SViTError: If these are neither, or integers that cannot number classes.
    """
    found = set(labels) - {None}
    if all(isinstance(label, str) for label in found):
        return tuple(sorted(found))
    if not all(isinstance(label, int) for label in found):
        kinds = ", ".join(sorted({type(label).__name__ for label in found}))
        raise SViTError(
            f"labels of {source} have to be integers or strings, got {kinds}; `label_column` names others."
        )
    if min(found) < 0 or max(found) >= MAX_UNNAMED_CLASSES:
        raise SViTError(
            f"labels of {source} go from {min(found)} to {max(found)}; the numbers of classes lie within 0 and "
            f"{MAX_UNNAMED_CLASSES - 1}."
        )
    return tuple(str(label) for label in range(max(found) + 1))


class LabelIds:
    """Give the id of a label as it is stored.

    Args:
        names: Names of the classes, in order.
    """

    def __init__(self, names: tuple[str, ...]):
        self.ids = {name: index for index, name in enumerate(names)}
        self.num_classes = len(names)

    def __call__(self, label: Any, source: str, row: int) -> int:
        """Return the id.

        Raises:
            DataError: If there is no such class.
        """
        if isinstance(label, str):
            label = self.ids.get(label, label)
        if isinstance(label, int) and 0 <= label < self.num_classes:
            return label
        raise DataError(
            f"the label in row {row} of {source} is {label!r}, which is none of the {self.num_classes} classes that "
            "the training split has."
        )
