# SPDX-License-Identifier: Apache-2.0
"""`svit-hf train`: every field of the recipe is an option, and `--recipe` says what their defaults are."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from svit_hf.errors import SViTError, nearest
from svit_hf.extras import require_extra
from svit_hf.option_fields import ARGUMENTS
from svit_hf.recipes import RECIPES
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import read_recipe, require_config_fields
from svit_hf.urls import without_credentials


CONFIG_FIELD = "--model.config."


@dataclass(frozen=True)
class TrainCommand:
    """Train a recipe, or continue to; alone, or on every rank of torchrun, accelerate launch or srun.

    A run that was stopped, in whatever way, goes on exactly where it was when the same command is given again. SIGTERM
    and Ctrl-C save and end with exit status 143; 3 means that the data is bad, 4 that training diverged.

    Args:
        recipe: Which values the options below have by default; the recipe.json of a run is such a file.
        output_dir: Folder of the run: new, empty, or that of the run to continue.
        options: What the recipe says, to be changed.
        resume: Continue from the newest valid checkpoint of the run if there is one (auto), refuse to (never), or
            continue from the checkpoint in this folder.
        resume_changed: Continue although data, batch size or recipe are not what they were; NOT EXACT, and said so.
    """

    recipe: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(RECIPES)}}}|FILE.json")]
    output_dir: Path
    # every option is followed by its value, booleans too
    options: Annotated[TrainingRecipe, tyro.conf.FlagConversionOff, tyro.conf.arg(name="")]
    resume: str = "auto"
    resume_changed: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], program: str) -> "TrainCommand":
        """Read a command line; without `--recipe`, which is an error, its help shows the defaults of no recipe.

        Raises:
            SViTError: If there is no such recipe, or a value is impossible.
        """
        arguments, name, config = _take_apart(arguments)
        recipe = find_recipe(name) if name is not None else TrainingRecipe()
        require_config_fields(config, "model.config")
        recipe = replace(recipe, model=replace(recipe.model, config={**recipe.model.config, **config}))
        default = cls(tyro.MISSING if name is None else name, tyro.MISSING, recipe)
        command = tyro.cli(cls, args=arguments, prog=program, default=default, registry=ARGUMENTS)
        require_config_fields(command.options.model.config, "model.config")
        return command

    def run(self) -> int:
        """Train, and return the exit status.

        Raises:
            SViTError: If something does not go together; see `svit_hf.training.train.train`.
        """
        require_extra("train", "train")
        # seconds pass while this is imported
        from svit_hf.training.train import train

        command = without_credentials(shlex.join(["svit-hf", *sys.argv[1:]]))
        train(self.options, self.output_dir, resume=self.resume, resume_changed=self.resume_changed, command=command)
        # once for all processes of a run
        if os.environ.get("RANK", "0") == "0":
            print(_what_next(self.output_dir))  # noqa: T201 - a program's result
        return 0


def _what_next(run: Path) -> str:
    return f"""{run}/model is the model, {run}/report.json what is known of it. Use it, or look into it:

    svit-hf predict {run} "new/*.jpg"
    svit-hf visualize {run} "new/*.jpg" --output-dir looked"""


def find_recipe(name: str) -> TrainingRecipe:
    """Return the recipe of a name or a file.

    Raises:
        SViTError: If there is none, with the nearest name, or the file holds none.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        return read_recipe(Path(name))
    raise SViTError(f"`recipe` is {name!r}. {nearest(name, RECIPES)}Recipes are {', '.join(RECIPES)}, and JSON files.")


def _take_apart(arguments: Sequence[str]) -> tuple[list[str], str | None, dict[str, Any]]:
    """Return the arguments without fields of the model's config, the name of the recipe, and these fields."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    others: list[str] = []
    recipe, config = None, {}
    while words:
        word = words.pop(0)
        if word.startswith(CONFIG_FIELD) and words:
            config[word.removeprefix(CONFIG_FIELD).replace("-", "_")] = _value_of(words.pop(0))
            continue
        if word == "--recipe" and words:
            recipe = words[0]
        others.append(word)
    return others, recipe, config


def _value_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
