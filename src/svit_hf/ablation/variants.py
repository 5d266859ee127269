# SPDX-License-Identifier: Apache-2.0
"""The contestants of an ablation: which fields have which values, and the recipes that follow from it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from svit_hf.errors import SViTError
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import from_json, require_config_fields


# of values: not those inside of brackets
_COMMA = re.compile(r",(?![^\[]*\])")
# what every comparison of what super tokens are, and are used for, is to be seen beside: chance, and nothing
SAMPLER, MIXER, KINDS = (
    f"model.config.{field}" for field in ("super_token_sampler", "super_token_mixer", "attention_kinds")
)
CONTROLS = {SAMPLER: "random", MIXER: "none"}
CONTROLLED = {*CONTROLS, KINDS, "model.config.super_token_sizes", "model.config.num_sampling_iterations"}
# what no name of a folder should have
_AWKWARD = re.compile(r"[^\w.=,+-]+")


def find_variants(over: Sequence[str], one_by_one: bool = False) -> list[dict[str, Any]]:
    """Return every combination of the values of `FIELD=a,b,c`, the first values first, and after them the controls.

    Where samplers or mixers of super tokens, attention, cells or rounds of sampling are compared, the first
    combination that has super tokens is there with a random association and with nothing among super tokens, too.

    Args:
        over: Fields of a recipe, such as `optimization.learning_rate=1e-3,2e-3`, each with its values; a name without
            a dot is a field of the model's config. Values are JSON, and texts otherwise.
        one_by_one: Instead of combinations, nothing changed, and then each value alone.

    Raises:
        SViTError: If a field has no values or appears twice, is the seed, or the model's config has no such field.
    """
    values: dict[str, list[Any]] = {}
    for text in over:
        field, _, listed = text.partition("=")
        field = field.replace("-", "_")
        field = field if "." in field else f"model.config.{field}"
        if not listed or field in values:
            raise SViTError(f"`over` has {text!r}; expected is FIELD=VALUE,VALUE,..., and each field once.")
        if field == "run.seed":
            raise SViTError(f"`over` has {text!r}; say how many with `seeds`, which count from `run.seed`.")
        values[field] = [_value_of(value) for value in _COMMA.split(listed)]
    config = [field.removeprefix("model.config.") for field in values if field.startswith("model.config.")]
    require_config_fields(dict.fromkeys(config), "model.config")
    if one_by_one:
        variants = [{}, *({field: value} for field, of_field in values.items() for value in of_field)]
    else:
        variants = [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]
    # of a text, the whole, of a list, one for a stage
    with_super_tokens = [variant for variant in variants if "super_tokens" in variant.get(KINDS, "super_tokens")]
    if values.keys() & CONTROLLED and with_super_tokens:
        missing = [field for field, value in CONTROLS.items() if value not in values.get(field, ())]
        variants += [{**with_super_tokens[0], field: CONTROLS[field]} for field in missing]
    return variants


def name_of(variant: Mapping[str, Any]) -> str:
    """Return what a variant is called in the table."""
    return ",".join(f"{field.rpartition('.')[2]}={_text_of(value)}" for field, value in variant.items()) or "as it is"


def folder_of(variant: Mapping[str, Any]) -> str:
    """Return the name of a variant as that of a folder."""
    return _AWKWARD.sub("_", name_of(variant).replace("[", "").replace("]", ""))


def change_recipe(recipe: TrainingRecipe, variant: Mapping[str, Any], seed: int) -> TrainingRecipe:
    """Return a recipe with the fields of a variant, and another seed.

    Raises:
        SViTError: If a recipe has no such field, or not such a value.
    """
    # with the passwords that `to_json` hides
    content = json.loads(json.dumps(asdict(recipe)))
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
        # booleans as Python writes them, which other options take too
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text
