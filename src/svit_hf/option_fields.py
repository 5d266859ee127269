# SPDX-License-Identifier: Apache-2.0
"""Fields of option dataclasses: which values they take, and whether a run that goes on may have another one.

Both are metadata of the field, stated where the field is. Values are checked when an object is made, wherever they
come from: Python, the command line, a file.
"""

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from svit_hf.errors import SViTError


_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}
_CHANGES_FREELY = "changes_freely"
# one JSON object on the command line
JsonObject = Annotated[
    Mapping[str, Any],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: json.loads(words[0]),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [json.dumps(dict(value))],
    ),
]
# how every command reads its arguments, beside what tyro knows
ARGUMENTS = ConstructorRegistry()


@ARGUMENTS.primitive_rule
def _read_boolean(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """Take booleans as JSON and as Python write them."""
    if info.type is not bool:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{True,False}",
        instance_from_str=lambda words: words[0] in ("True", "true"),
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
        choices=("True", "False", "true", "false"),
    )


def option(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    changes_freely: bool = False,
) -> Any:
    """Return a field of an option dataclass.

    Args:
        default: Its default.
        at_least: Smallest value; of each number, if the value is a tuple. `None` as a value is always allowed.
        above: The same, without the bound itself.
        at_most: Largest value.
        below: The same, without the bound itself.
        changes_freely: Whether a run that goes on may have another value and is still the same training.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    stated = {name: bound for name, bound in bounds.items() if bound is not None}
    return field(default=default, metadata=stated | {_CHANGES_FREELY: changes_freely})


def check_options(options: Any, section: str = "") -> None:
    """Check an option dataclass and its parts: numbers against their bounds, texts against those that are allowed.

    Args:
        options: The object.
        section: What its fields are called by on the command line, such as `optimization`; empty if by their names.

    Raises:
        SViTError: If a number is not finite or out of its bounds, or a text is none of a `Literal`; the message names
            field, value and what is allowed.
    """
    hints = get_type_hints(type(options))
    for item in fields(options):
        name, value = f"{section}.{item.name}" if section else item.name, getattr(options, item.name)
        if is_dataclass(value):
            check_options(value, name)
            continue
        if get_origin(hints[item.name]) is Literal:
            choices = get_args(hints[item.name])
            require(value in choices, name, value, f"one of {', '.join(map(str, choices))}")
        bounds = {key: bound for key, bound in item.metadata.items() if key in _BOUNDS}
        allowed = " and ".join(f"{key.replace('_', ' ')} {bound}" for key, bound in bounds.items()) or "finite"
        for number in _numbers_in(value):
            is_within = all(_BOUNDS[key](number, bound) for key, bound in bounds.items())
            require(is_within and math.isfinite(number), name, value, allowed)


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Refuse the value of an option unless a condition holds.

    Raises:
        SViTError: If it does not.
    """
    if not holds:
        raise SViTError(f"`{name}` is {value!r}; it has to be {allowed}.")


def freely_changing(kind: type, section: str = "") -> set[str]:
    """Return the dotted names of the fields of a dataclass, and of its parts, that `option` calls free to change."""
    hints = get_type_hints(kind)
    names: set[str] = set()
    for item in fields(kind):
        name = f"{section}.{item.name}" if section else item.name
        if is_dataclass(hints[item.name]):
            names |= freely_changing(hints[item.name], name)
        elif item.metadata.get(_CHANGES_FREELY):
            names.add(name)
    return names


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
