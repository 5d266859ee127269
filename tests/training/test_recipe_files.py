# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest

from svit_hf.errors import SViTError
from svit_hf.training.config import OptimizationOptions, TrainingRecipe
from svit_hf.training.recipe_files import from_json, override, read_recipe, to_json


@pytest.mark.parametrize(
    ("assignment", "part", "field", "value"),
    [
        ("optimization.learning_rate=1e-3", "optimization", "learning_rate", 1e-3),
        ("optimization.learning_rate=1", "optimization", "learning_rate", 1.0),
        ("optimization.epochs=7", "optimization", "epochs", 7),
        ("optimization.betas=[0.8, 0.9]", "optimization", "betas", (0.8, 0.9)),
        ("optimization.loss=binary_cross_entropy", "optimization", "loss", "binary_cross_entropy"),
        ("data.path=1234", "data", "path", "1234"),
        ("data.streaming=true", "data", "streaming", True),
        ("data.streaming=none", "data", "streaming", None),
        ("data.num_workers=3", "data", "num_workers", 3),
        ("run.trackers=tensorboard", "run", "trackers", ("tensorboard",)),
        ('run.trackers=["tensorboard", "wandb"]', "run", "trackers", ("tensorboard", "wandb")),
        ("model.drop_path_schedule=[[0, 0.4], [260, 0.6]]", "model", "drop_path_schedule", ((0, 0.4), (260, 0.6))),
        ("model.config.depths=[1, 1, 1, 1]", "model", "config", {"depths": [1, 1, 1, 1]}),
        ('model.config={"depths": [1]}', "model", "config", {"depths": [1]}),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_value_is_read_by_the_type_of_its_field(assignment, part, field, value):
    recipe = override(TrainingRecipe(), [assignment])
    read = getattr(getattr(recipe, part), field)
    assert read == value
    assert type(read) is type(value)
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


def test_later_assignment_wins_and_others_stay():
    recipe = TrainingRecipe(optimization=OptimizationOptions(weight_decay=0.3))
    changed = override(recipe, ["optimization.epochs=6", "optimization.epochs=7"])
    assert changed == replace(recipe, optimization=replace(recipe.optimization, epochs=7))
    assert recipe.optimization.epochs == 300


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "optimization.learning_rat=1",
            "`optimization.learning_rat` is unknown; did you mean `optimization.learning_r",
        ),
        ("optimisation.epochs=1", "did you mean `optimization`"),
        ("model.config.depth=[1]", "`model.config.depth` is unknown; did you mean `model.config.depths`"),
        ("optimization.epochs=many", "`optimization.epochs` is 'many'; it has to be a whole number"),
        ("optimization.epochs=1.5", "it has to be a whole number"),
        ("optimization.epochs=true", "it has to be a whole number"),
        ("optimization.epochs=0", "`optimization.epochs` is 0; it has to be at least 1"),
        ("optimization.betas=[0.9]", "`optimization.betas`"),
        ("optimization.loss=hinge", "it has to be one of cross_entropy, binary_cross_entropy"),
        ("optimization=1", "set one of optimization.epochs"),
        ("optimization.epochs.max=1", "`optimization.epochs` is a single value"),
        ("optimization.epochs", "it has to be like optimization.learning_rate=1e-3"),
        ("run.trackers=mlflow", "run.trackers"),
    ],
    ids=lambda value: value.split(";")[0] if "=" in value else "",
)
def test_what_cannot_be_meant_is_refused(assignment, message):
    with pytest.raises(SViTError) as error:
        override(TrainingRecipe(), [assignment])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimization": {"epochs": "3"}}, "`optimization.epochs` is '3'"),
        ({"optimization": {"epoch": 3}}, "did you mean `optimization.epochs`"),
        ({"optimizatio": {}}, "did you mean `optimization`"),
        ({"optimization": 3}, "`optimization` is 3; it has to be an object"),
        ([], "`recipe` is []"),
    ],
    ids=["type", "field", "part", "value", "list"],
)
def test_json_that_is_no_recipe_is_refused(content, message):
    with pytest.raises(SViTError) as error:
        from_json(content)
    assert message in str(error.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(SViTError, match=r"recipe\.json.*cannot be read"):
        read_recipe(path)
    path.write_text("{")
    with pytest.raises(SViTError, match=r"recipe\.json.*cannot be read"):
        read_recipe(path)


def test_values_that_only_go_together_may_come_in_any_order():
    recipe = override(TrainingRecipe(), ["optimization.epochs=2", "optimization.warmup_epochs=1"])
    assert (recipe.optimization.epochs, recipe.optimization.warmup_epochs) == (2, 1)
    with pytest.raises(SViTError, match="warmup_epochs"):
        override(TrainingRecipe(), ["optimization.epochs=2"])
