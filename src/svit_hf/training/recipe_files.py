# SPDX-License-Identifier: Apache-2.0
"""Recipes as JSON. The types of the fields decide what is allowed."""

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from svit_hf.errors import SViTError, nearest
from svit_hf.files import read_json
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.training.options import TrainingRecipe
from svit_hf.urls import without_credentials


def to_json(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return a recipe as plain dictionaries, lists, texts and numbers, without passwords in addresses."""
    content: dict[str, Any] = json.loads(without_credentials(json.dumps(asdict(recipe))))
    return content


def from_json(content: object) -> TrainingRecipe:
    """Make a recipe of what `to_json` returns; parts that are not given keep their defaults."""
    return _convert(content, TrainingRecipe, "")


def read_recipe(path: Path) -> TrainingRecipe:
    """Read a recipe from a JSON file, such as the `recipe.json` of a run."""
    return from_json(read_json(path, "recipe"))


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Return `value`, which came from JSON, as the type `kind`, or refuse it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        prefix = f"{name}." if name else ""
        _require_known(value, [item.name for item in fields(kind)], prefix)
        values = {key: _convert(item, hints[key], prefix + key) for key, item in value.items()}
        return kind(**values)  # type: ignore[operator]
    if origin in (Union, types.UnionType):
        return _convert_to_one(value, arguments, name)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_convert(item, item_kind, name) for item, item_kind in zip(value, kinds, strict=True))
    if origin is not None and issubclass(dict, origin if isinstance(origin, type) else ()) and isinstance(value, dict):
        if name == "model.config":
            require_config_fields(value, name)
        return value
    # a bool is an int to Python, and an int may stand for a float
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise SViTError(f"`{name or 'recipe'}` is {value!r}; it has to be {_describe(kind)}.")


def _convert_to_one(value: Any, kinds: Sequence[Any], name: str) -> Any:
    """Return `value` as the first of several types that it can be."""
    if value is None and type(None) in kinds:
        return None
    *others, last = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        with suppress(SViTError):
            return _convert(value, kind, name)
    return _convert(value, last, name)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if kind in words:
        return words[kind]
    if is_dataclass(kind):
        return "an object"
    return f"like {str(kind).replace('typing.', '')}, as JSON"


def _require_known(names: Iterable[str], known: Sequence[str], prefix: str) -> None:
    for name in names:
        if name not in known:
            candidates = [prefix + candidate for candidate in known]
            hint = nearest(prefix + name, candidates) or f"Known are {', '.join(candidates)}."
            raise SViTError(f"`{prefix}{name}` is unknown. {hint}".rstrip())


def require_config_fields(values: Mapping[str, Any], name: str) -> None:
    """Refuse fields that `SViTConfig` does not have."""
    known = [item.name for item in fields(SViTConfig)] + ["out_features", "out_indices", "num_labels"]
    _require_known(values, known, f"{name}.")
