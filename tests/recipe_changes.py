# SPDX-License-Identifier: Apache-2.0
"""Recipes with other values, for tests."""

from svit_hf.training.recipe_files import from_json, to_json


def changed(recipe, **values):
    """Return a recipe in which `optimization__epochs=2` has changed the field `optimization.epochs`."""
    content = to_json(recipe)
    for name, value in values.items():
        *path, last = name.split("__")
        part = content
        for key in path:
            part = part[key]
        part[last] = value
    return from_json(content)
