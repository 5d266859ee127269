# SPDX-License-Identifier: Apache-2.0
"""What the labels of a data set mean to a model: by name, by a file, or image by image.

Numbers are never compared: two data sets may number the same classes differently. Everything is read from local files.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from svit_hf.errors import EvaluationError, SViTError
from svit_hf.files import read_json, read_text


NO_CLASS = -1
NUM_NAMES_SHOWN = 20

VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class LabelMap:
    """Classes of a model that are right for an image, and those that it chooses among.

    Attributes:
        targets: The right classes, int64 of shape `(rows, n)`: a row for each label of the data, or for each image;
            what a row lacks is filled up with `NO_CLASS`. Images of a row without any class are left out.
        description: What was done, in a line for the user.
        is_by_image: Whether rows are images, by `sample_ids`, and not labels.
        competitors: The classes among which the model chooses, shape `(n,)`; all of them if `None`.
    """

    targets: torch.Tensor
    description: str
    is_by_image: bool = False
    competitors: torch.Tensor | None = None

    def targets_of(self, labels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return the right classes of images, shape `(B, n)`, filled up with `NO_CLASS`.

        Raises:
            EvaluationError: If there is no row for one of them.
        """
        rows = sample_ids if self.is_by_image else labels
        assert rows is not None, "a label map by image needs `sample_ids`"
        unknown = rows[(rows < 0) | (rows >= len(self.targets))].tolist()
        if unknown:
            kind = "image" if self.is_by_image else "label"
            raise EvaluationError(
                f"the data has {kind} {unknown[0]}, and the label map goes from 0 to {len(self.targets) - 1}."
            )
        return self.targets[rows]

    def excluded(self, num_classes: int) -> torch.Tensor:
        """Return which classes of the model the image cannot have: booleans of shape `(num_classes,)`."""
        excluded = torch.zeros(num_classes, dtype=torch.bool)
        if self.competitors is not None:
            excluded[:] = True
            excluded[self.competitors] = False
        return excluded


def columns_by_name(data_names: Sequence[str], model_names: Sequence[str]) -> torch.Tensor:
    """Return the number that the model has for each label of the data, int64 `(n,)`.

    Raises:
        EvaluationError: If the model lacks one.
    """
    if strangers := [name for name in data_names if name not in model_names]:
        raise EvaluationError(
            f"the data has the labels {_heads(data_names)}, and the model {_heads(model_names)}; it lacks "
            f"{_heads(strangers)}. Labels are matched by name."
        )
    return torch.tensor([model_names.index(name) for name in data_names], dtype=torch.int64)


def map_labels(
    data_names: Sequence[str],
    model_names: Sequence[str],
    *,
    label_map: Path | None = None,
    mask: Path | None = None,
    image_names: Callable[[], Sequence[str]] = tuple,
) -> LabelMap:
    """Find out which classes of the model are right.

    Without `label_map`, names decide: every label of the data has to be a class of the model; the order does not
    matter. Otherwise the file says it, in one of three forms:

    - text, a line for each class of the model, in its order: what the data calls this class;
    - a JSON object from labels of the data to names or numbers of the model's classes, or to lists of them;
    - a JSON list with a list of numbers of the model's classes for each image. Images called
      `ILSVRC2012_val_00000001`, and so on, are found by their number, others by their place in the data. Images with
      an empty list are left out.

    Args:
        data_names: Names of the data's labels, in order.
        model_names: Names of the model's classes, in order.
        label_map: A file that says what labels mean.
        mask: A text file with the classes among which the model chooses, one per line: as the data calls them, as the
            model does, or their numbers in the model.
        image_names: Gives the names of the images, if they are needed.

    Raises:
        SViTError: If a name or number is unknown, or a file cannot be read.

    Source: the lists of images are those of "Are we done with ImageNet?" (Beyer et al., 2020, `real.json` of
    google-research/reassessed-imagenet), of which an answer needs to hit one; masks are those of ImageNet-A and
    ImageNet-R (Hendrycks et al., 2021), which score 200 of the 1000 classes.
    """
    if label_map is None:
        found, known = _by_name(data_names, model_names)
    else:
        if label_map.suffix != ".json":
            lines = read_text(label_map, "label_map").splitlines()
            known = _classes_of_lines(lines, len(model_names), label_map)
            found = _by_table(known, data_names, label_map)
        elif isinstance(parsed := read_json(label_map, "label_map"), dict):
            known = {name: _classes_of(value, model_names, label_map) for name, value in parsed.items()}
            found = _by_table(known, data_names, label_map)
        else:
            known = {}
            found = _by_image(parsed, image_names(), model_names, label_map)
    return found if mask is None else _restrict(found, known, model_names, mask)


def _by_name(data_names: Sequence[str], model_names: Sequence[str]) -> tuple[LabelMap, dict[str, list[int]]]:
    classes = {name: [number] for number, name in enumerate(model_names)}
    every_class = torch.arange(len(model_names))[:, None]
    if list(data_names) == list(model_names):
        return LabelMap(every_class, f"the {len(model_names)} classes of the model"), classes
    is_ambiguous = len(classes) < len(model_names) or len(set(data_names)) < len(data_names)
    if is_ambiguous or not classes.keys() >= set(data_names):
        unknown = [name for name in data_names if name not in classes]
        why = "are not unique" if is_ambiguous else f"differ: the model does not have {_heads(unknown)}"
        raise SViTError(
            f"the names of the data's labels and of the model's classes {why}. The data has {_heads(data_names)}; the "
            f"model has {_heads(model_names)}. Numbers are not compared: `label_map` has to name a file that says "
            "what the labels mean."
        )
    what = (
        f"the {len(model_names)} classes of the model, in another order; matched by name"
        if len(data_names) == len(model_names)
        else f"{len(data_names)} of the {len(model_names)} classes of the model, matched by name"
    )
    return LabelMap(every_class[[classes[name][0] for name in data_names]], what), classes


def _classes_of_lines(lines: list[str], num_classes: int, path: Path) -> dict[str, list[int]]:
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != num_classes:
        raise SViTError(
            f"`label_map` is {str(path)!r} with {len(names)} lines; it needs one for each of the model's "
            f"{num_classes} classes, with what the data calls this class."
        )
    classes: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        classes.setdefault(name, []).append(number)
    return classes


def _classes_of(value: Any, model_names: Sequence[str], path: Path) -> list[int]:
    """Turn a name or number of a class of the model, or a list of them, into a list of numbers."""
    numbers = []
    for one in value if isinstance(value, list) else [value]:
        number = model_names.index(one) if list(model_names).count(one) == 1 else one
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(model_names):
            raise SViTError(
                f"{str(path)!r} has {one!r}, which is no class of the model: neither a number from 0 to "
                f"{len(model_names) - 1} nor one of {_heads(model_names)}."
            )
        numbers.append(number)
    return numbers


def _by_table(classes: dict[str, list[int]], data_names: Sequence[str], path: Path) -> LabelMap:
    if missing := [name for name in data_names if name not in classes]:
        raise SViTError(f"`label_map` is {str(path)!r}, which does not have these labels: {_heads(missing)}.")
    return LabelMap(_pad([classes[name] for name in data_names]), f"by {path.name}")


def _by_image(content: Any, image_names: Sequence[str], model_names: Sequence[str], path: Path) -> LabelMap:
    if not isinstance(content, list) or not all(isinstance(classes, list) for classes in content):
        raise SViTError(f"`label_map` is {str(path)!r}; it has to hold an object, or a list of lists.")
    numbers = [int(match[1]) for match in map(VALIDATION_NAME.search, image_names) if match]
    if numbers:
        places, how = [number - 1 for number in numbers], "by the numbers in their names"
        is_complete = len(numbers) == len(image_names) and max(numbers) <= len(content)
    else:
        places, how = list(range(len(image_names))), "by their place in the data"
        is_complete = len(image_names) == len(content)
    if not is_complete:
        raise SViTError(
            f"`label_map` is {str(path)!r} with {len(content)} lists, and the data has {len(image_names)} images, "
            f"{len(numbers)} of which are called ILSVRC2012_val_ and a number. It needs a list for each."
        )
    classes = [_classes_of(content[place], model_names, path) for place in places]
    return LabelMap(_pad(classes), f"image by image from {path.name}, {how}", is_by_image=True)


def _restrict(label_map: LabelMap, known: dict[str, list[int]], model_names: Sequence[str], path: Path) -> LabelMap:
    competitors: set[int] = set()
    for line in filter(None, map(str.strip, read_text(path, "mask").splitlines())):
        number = int(line) if line.isdecimal() and line not in model_names else line
        competitors.update(known.get(line) or _classes_of(number, model_names, path))
    outside = set(label_map.targets.flatten().tolist()) - competitors - {NO_CLASS}
    if outside:
        names = [model_names[number] for number in sorted(outside)]
        raise SViTError(f"`mask` is {str(path)!r}, which leaves out classes that are right: {_heads(names)}.")
    description = f"{label_map.description}; the model chooses among the {len(competitors)} of {path.name}"
    return replace(label_map, competitors=torch.tensor(sorted(competitors)), description=description)


def _pad(rows: list[list[int]]) -> torch.Tensor:
    width = max([1, *map(len, rows)])
    return torch.tensor([row + [NO_CLASS] * (width - len(row)) for row in rows])


def _heads(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:NUM_NAMES_SHOWN])}{', ...' if len(names) > NUM_NAMES_SHOWN else ''}"
