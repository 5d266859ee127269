# SPDX-License-Identifier: Apache-2.0
"""`svit-hf train`: the arguments, and which recipe they mean."""

import difflib
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from svit_hf.errors import SViTError
from svit_hf.extras import require_extra


if TYPE_CHECKING:
    from svit_hf.training.config import TrainingRecipe


@dataclass
class TrainCommand:
    """Train a recipe, or continue to; alone, or on every rank of torchrun, accelerate launch or srun.

    A run that was stopped, in whatever way, goes on exactly where it was when the same command is given again. SIGTERM
    and Ctrl-C save and end with exit status 143; 3 means that the data is bad, 4 that training diverged.

    Args:
        recipe: A name (svit-hf train --recipe help lists them), or a JSON file such as the recipe.json of a run.
        output_dir: Folder of the run: new, empty, or that of the run to continue.
        set: A value of the recipe by its dotted name, such as optimization.learning_rate=1e-3; may be repeated.
        resume: Continue from the newest valid checkpoint of the run if there is one (auto), refuse to (never), or
            continue from the checkpoint in this folder.
        resume_changed: Continue although ranks, batch size or recipe are not what they were; not exact, and said so.
    """

    recipe: str
    output_dir: Path
    set: Annotated[list[str], tyro.conf.UseAppendAction] = field(default_factory=list)
    resume: str = "auto"
    resume_changed: bool = False

    def run(self) -> int:
        """Train, and return the exit status.

        Raises:
            SViTError: If something does not go together; see `svit_hf.training.train.train`.
        """
        require_extra("train", "train")
        # seconds pass while these are imported
        from svit_hf.training.recipe_files import override
        from svit_hf.training.train import train

        recipe = override(find_recipe(self.recipe), self.set)
        command = shlex.join(["svit-hf", *sys.argv[1:]])
        train(recipe, self.output_dir, resume=self.resume, resume_changed=self.resume_changed, command=command)
        return 0


def find_recipe(name: str) -> "TrainingRecipe":
    """Return the recipe of a name or a file.

    Raises:
        SViTError: If there is none, with the nearest name, or the file holds none.
    """
    from svit_hf.recipes import RECIPES
    from svit_hf.training.recipe_files import read_recipe

    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        return read_recipe(Path(name))
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise SViTError(f"`recipe` is {name!r}. {hint}Recipes are {', '.join(RECIPES)}, and JSON files.")
