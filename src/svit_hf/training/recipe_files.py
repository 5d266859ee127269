# SPDX-License-Identifier: Apache-2.0
"""Recipes as text: JSON files, and single values by dotted name. The types of the fields decide what is allowed."""

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.training.config import TrainingRecipe


def to_json(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return a recipe as plain dictionaries, lists, texts and numbers."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return content


def from_json(content: object) -> TrainingRecipe:
    """Make a recipe of what `to_json` returns; parts that are not given keep their defaults.

    Raises:
        SViTError: If a name is unknown or a value does not have the type of its field.
    """
    return _convert(content, TrainingRecipe, "")


def read_recipe(path: Path) -> TrainingRecipe:
    """Read a recipe from a JSON file, such as the `recipe.json` of a run.

    Raises:
        SViTError: If the file cannot be read, or does not hold a recipe.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SViTError(f"`recipe` is {str(path)!r}, which cannot be read: {error}") from error
    return from_json(content)


def override(recipe: TrainingRecipe, assignments: Sequence[str]) -> TrainingRecipe:
    """Change single values.

    Args:
        recipe: The recipe; it stays as it is.
        assignments: Texts such as `optimization.learning_rate=1e-3`. Lists and objects are written as JSON.

    Returns:
        A recipe with the new values.

    Raises:
        SViTError: If a name is unknown, with the nearest one, or a value does not have the type of its field.
    """
    content = to_json(recipe)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SViTError(f"`set` is {assignment!r}; it has to be like optimization.learning_rate=1e-3.")
        _assign(content, TrainingRecipe, name.strip().split("."), text.strip(), "")
    # checked when all are there: two values may only go together
    return from_json(json.loads(json.dumps(content)))


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _assign(content: dict[str, Any], kind: Any, path: Sequence[str], text: str, prefix: str) -> None:
    """Give the field at the end of `path` of a `kind`, as plain values, the value that `text` stands for."""
    name, *rest = path
    _require_known([name], kind, prefix)
    field_kind, full_name = get_type_hints(kind)[name], f"{prefix}{name}"
    if is_dataclass(field_kind) and rest:
        _assign(content[name], field_kind, rest, text, f"{full_name}.")
    elif is_dataclass(field_kind):
        parts = ", ".join(f"{full_name}.{part.name}" for part in fields(field_kind))
        raise SViTError(f"`{full_name}` has several values; set one of {parts}.")
    elif isinstance(content[name], dict) and rest:
        content[name][".".join(rest)] = _from_text(text)
        _require_config_fields(content[name], full_name)
    elif rest:
        raise SViTError(f"`{'.'.join([full_name, *rest])}` is unknown: `{full_name}` is a single value.")
    else:
        content[name] = _parse(text, field_kind, full_name)


def _parse(text: str, kind: Any, name: str) -> object:
    """Read a text from the command line as a value of a type; texts need no quotes, lists are JSON."""
    alternatives = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if type(None) in alternatives and text.lower() in ("none", "null"):
        return None
    if str in alternatives or any(get_origin(alternative) is Literal for alternative in alternatives):
        return _convert(text, kind, name)
    if bool in alternatives and text.lower() in ("true", "false"):
        return text.lower() == "true"
    value = _from_text(text)
    # a list with one entry may go without brackets
    if any(get_origin(alternative) is tuple for alternative in alternatives) and not isinstance(value, list):
        value = text.split(",") if text else []
    return _convert(value, kind, name)


def _from_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Return `value`, which came from JSON, as the type `kind`, or refuse it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, Mapping):
        _require_known(value, kind, f"{name}." if name else "")
        hints = get_type_hints(kind)
        prefix = f"{name}." if name else ""
        values = {key: _convert(item, hints[key], prefix + key) for key, item in value.items()}
        return kind(**values)  # type: ignore[operator]
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(value, next(a for a in arguments if a is not type(None)), name)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_convert(item, item_kind, name) for item, item_kind in zip(value, kinds, strict=True))
    if origin is not None and issubclass(dict, origin if isinstance(origin, type) else ()) and isinstance(value, dict):
        _require_config_fields(value, name)
        return value
    # a bool is an int to Python, and an int may stand for a float
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise SViTError(f"`{name or 'recipe'}` is {value!r}; it has to be {_describe(kind)}.")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if kind in words:
        return words[kind]
    if is_dataclass(kind):
        return "an object"
    return f"like {str(kind).replace('typing.', '')}, as JSON"


def _require_known(names: Sequence[str] | Mapping[str, Any], kind: Any, prefix: str) -> None:
    known = [item.name for item in fields(kind)]
    for name in names:
        if name not in known:
            _refuse_unknown(prefix + name, [prefix + candidate for candidate in known])


def _require_config_fields(values: Mapping[str, Any], name: str) -> None:
    known = [item.name for item in fields(SViTConfig)] + ["out_features", "out_indices", "num_labels"]
    for key in values:
        if key not in known:
            _refuse_unknown(f"{name}.{key}", [f"{name}.{candidate}" for candidate in known])


def _refuse_unknown(name: str, known: Sequence[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}."
    raise SViTError(f"`{name}` is unknown; {hint}")
