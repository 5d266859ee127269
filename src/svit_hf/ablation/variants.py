# SPDX-License-Identifier: Apache-2.0
"""The contestants of an ablation: which fields have which values, and the recipes that follow from it."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from svit_hf.errors import SViTError
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import from_json, require_config_fields, to_json


# of values: not those inside of brackets
_COMMA = re.compile(r",(?![^\[]*\])")
# what every comparison of one of these is to be seen beside: chance, and nothing
CONTROLS = {"model.config.super_token_sampler": "random", "model.config.super_token_mixer": "none"}
# what no name of a folder should have
_AWKWARD = re.compile(r"[^\w.=,+-]+")


def find_variants(over: Sequence[str]) -> list[dict[str, Any]]:
    """Return every combination of the values of `FIELD=a,b,c`, the first values first, and after them the controls.

    Where samplers or mixers of super tokens are compared, the first combination is there with a random association and
    with nothing among super tokens, too.

    Args:
        over: Fields of a recipe, such as `optimization.learning_rate=1e-3,2e-3`, each with its values; a name without
            a dot is a field of the model's config. Values are JSON, and texts otherwise.

    Raises:
        SViTError: If a field has no values or appears twice, or the model's config has no such field.
    """
    values: dict[str, list[Any]] = {}
    for text in over:
        field, _, listed = text.partition("=")
        field = field.replace("-", "_")
        field = field if "." in field else f"model.config.{field}"
        if not listed or field in values:
            raise SViTError(f"`over` has {text!r}; expected is FIELD=VALUE,VALUE,..., and each field once.")
        values[field] = [_value_of(value) for value in _COMMA.split(listed)]
    config = [field.removeprefix("model.config.") for field in values if field.startswith("model.config.")]
    require_config_fields(dict.fromkeys(config), "model.config")
    variants = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
    if values.keys() & CONTROLS.keys():
        missing = [field for field, value in CONTROLS.items() if value not in values.get(field, ())]
        variants += [{**variants[0], field: CONTROLS[field]} for field in missing]
    return variants


def name_of(variant: Mapping[str, Any]) -> str:
    """Return what a variant is called, in the table and as a folder."""
    return ",".join(f"{field.rpartition('.')[2]}={_text_of(value)}" for field, value in variant.items())


def folder_of(variant: Mapping[str, Any]) -> str:
    """Return the name of a variant as that of a folder."""
    return _AWKWARD.sub("_", name_of(variant).replace("[", "").replace("]", "")) or "as_it_is"


def change_recipe(recipe: TrainingRecipe, variant: Mapping[str, Any], seed: int) -> TrainingRecipe:
    """Return a recipe with the fields of a variant, and another seed.

    Raises:
        SViTError: If a recipe has no such field, or not such a value.
    """
    content = to_json(recipe)
    for field, value in {**variant, "run.seed": seed}.items():
        *sections, last = field.split(".")
        part = content
        for section in sections:
            part = part.get(section, {})
            if not isinstance(part, dict):
                raise SViTError(f"`over` has {field!r}, which is no field of a recipe.")
        is_config = sections == ["model", "config"]
        if last not in part and not is_config:
            raise SViTError(f"`over` has {field!r}, which is no field of a recipe.")
        part[last] = value
    return from_json(content)


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
