# SPDX-License-Identifier: Apache-2.0
"""Which columns hold the images and the labels, what the labels are called, and which classes these names mean."""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets

from svit_hf.data.folders import similar_names, split_of_name
from svit_hf.data.options import DataOptions
from svit_hf.errors import DataError, SViTError, listed


IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "category")

# more labels than that are ids of something else than classes
MAX_CLASSES = 100_000


def find_columns(features: datasets.Features, options: DataOptions, labelled: bool) -> tuple[str, ...]:
    """Return the column of the images and, if labels are wanted, theirs: the named one, or the only one there is.

    `json.label` is the field `label` of the column `json`.

    Raises:
        SViTError: If there is none, or one of several.
    """
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    usual = [name for name in features if name.lower() in IMAGE_NAMES]
    # masks are images, too
    likely = [name for name in typed if name in usual] if len(typed) > 1 else typed
    image_column = _choose("image_column", options.image_column, likely or typed or usual, features)
    if not labelled:
        return (image_column,)
    return image_column, _find_label_column(features, options.label_column, options.multi_label)


def _find_label_column(features: datasets.Features, named: str | None, multi_label: bool) -> str:
    if named and "." in named and named not in features:
        field_of(features, named)
        return named
    if multi_label:
        features = datasets.Features({name: element_of(feature) for name, feature in features.items()})
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name, feature in features.items() if name.lower() in LABEL_NAMES and _is_plain(feature)]
    return _choose("label_column", named, typed or usual, features)


def element_of(feature: Any) -> Any:
    """Return what a list is made of; other features as they are."""
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature


def _is_plain(feature: Any) -> bool:
    if not isinstance(feature, datasets.Value):
        return False
    return feature.dtype.rstrip("0123456789") in ("int", "uint", "string", "large_string", "bool")


def _choose(argument: str, named: str | None, found: list[str], features: datasets.Features) -> str:
    if named is not None:
        if named not in features:
            raise SViTError(f"`{argument}` is {named!r}, which is no column; there are {', '.join(features)}.")
        return named
    if len(found) == 1:
        return found[0]
    what = f"could be any of {', '.join(found)}" if found else f"is none of {', '.join(features)} for sure"
    raise SViTError(f"`{argument}` {what}; name it.")


def top_columns(features: Iterable[str], *columns: str) -> list[str]:
    """Return the columns without fields inside them; a column of a tar may have dots in its name."""
    return list(dict.fromkeys(column if column in features else column.split(".")[0] for column in columns))


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


def names_in_features(features: datasets.Features | None, label_column: str) -> tuple[str, ...] | None:
    """Return the names of the classes, in order, if the features know them."""
    if features is None or top_columns(features, label_column)[0] not in features:
        return None
    feature = element_of(field_of(features, label_column))
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def names_of_labels(labels: Iterable[Any], source: str) -> tuple[str, ...]:
    """Name the classes after the labels that there are: strings in alphabetical order, integers by their size.

    Raises:
        SViTError: If these are neither, negative, or too many to be classes.
    """
    found: set[Any] = set()
    for row, label in enumerate(labels):
        refuse_lists(label, source, row)
        found.add(label)
    found.discard(None)
    if all(isinstance(label, str) for label in found):
        names = tuple(sorted(found))
    elif all(isinstance(label, int) for label in found):
        if min(found) < 0:
            raise SViTError(
                f"labels of {source} go from {min(found)} to {max(found)}; a negative one is no class. Leave these "
                "images out, or name their class."
            )
        names = tuple(str(label) for label in sorted(found))
    else:
        kinds = ", ".join(sorted({type(label).__name__ for label in found}))
        raise SViTError(
            f"labels of {source} are {kinds}; integers or strings are allowed. `label_column` names others."
        )
    if len(names) > MAX_CLASSES:
        raise SViTError(f"{source} has {len(names)} different labels; more than {MAX_CLASSES} are no classes.")
    return names


def refuse_lists(label: Any, source: str, row: int) -> None:
    """Refuse several labels where one is wanted.

    Raises:
        SViTError: If there are several.
    """
    if isinstance(label, (list, dict)):
        raise SViTError(
            f"the label in row {row} of {source} is {label!r}; a class is a string or an integer, one for each image. "
            "`label_column` names another column, or a field inside this one; `multi_label` allows any number."
        )


def require_classes(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Refuse classes that others do not have; the order is free, and so are classes without images.

    Raises:
        SViTError: If a name is not known; the message has both lists.
    """
    if strangers := [name for name in names if name not in set(known)]:
        raise SViTError(
            f"{what} has the classes {listed(names)}; of these, {listed(strangers)} are not among the classes of the "
            f"training split, {listed(known)}. Classes are matched by name."
        )


def remarks_on_names(names: Sequence[str]) -> list[str]:
    """Return what a user should look at in the names of the classes."""
    remarks = [
        f"the classes {' and '.join(map(repr, group))} differ only in spelling; they are counted as different"
        for group in similar_names(names)
    ]
    remarks += [f"the folder or label {name!r} is taken for a class" for name in names if split_of_name(name)]
    if len(names) == 1:
        remarks.append(f"there is only one class, {names[0]!r}")
    if names and all(name.isdecimal() for name in names):
        missing = int(names[-1]) + 1 - len(names)
        if missing > 0:
            remarks.append(
                f"the labels are {len(names)} of the integers up to {names[-1]}; only those that occur are classes"
            )
    return remarks


class LabelIds:
    """The ids of labels as they are stored.

    Args:
        names: Names of the classes, in order.
        stored_names: What integers stand for in the file that the labels are in; without it, labels are the names of
            classes themselves.
    """

    def __init__(self, names: Sequence[str], stored_names: Sequence[str] | None = None):
        self.ids = {name: index for index, name in enumerate(names)}
        self.stored_names = None if stored_names is None else tuple(stored_names)

    def several(self, labels: Any, source: str, row: int) -> tuple[int, ...]:
        """Return the ids of a list of labels, each once, in order.

        Raises:
            DataError: If it is no list, or there is no such class.
        """
        if not isinstance(labels, (list, tuple)):
            raise DataError(
                f"the label in row {row} of {source} is {labels!r}; with `multi_label` it has to be a list of labels."
            )
        return tuple(sorted({self(label, source, row) for label in labels}))

    def __call__(self, label: Any, source: str, row: int) -> int:
        """Return the id.

        Raises:
            DataError: If there is no such class.
        """
        name = label
        refuse_lists(label, source, row)
        if isinstance(label, int):
            name = str(label)
            if self.stored_names is not None:
                name = self.stored_names[label] if 0 <= label < len(self.stored_names) else None
        if isinstance(name, str) and name in self.ids:
            return self.ids[name]
        raise DataError(
            f"the label in row {row} of {source} is {label!r}, which is none of the {len(self.ids)} classes that the "
            f"training split has: {listed(self.ids)}."
        )
