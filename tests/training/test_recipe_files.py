# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
from recipe_changes import changed

from svit_hf.errors import SViTError
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import from_json, read_recipe, to_json


def test_everything_comes_back_from_json():
    recipe = changed(
        TrainingRecipe(),
        optimization__learning_rate=1,
        optimization__betas=[0.8, 0.9],
        data__streaming=True,
        data__num_workers=3,
        run__trackers=["tensorboard", "wandb"],
        model__drop_path_schedule=[[0, 0.4], [260, 0.6]],
        model__config={"depths": [1, 1, 1, 1]},
        model__image_size=[64, 96],
    )
    assert recipe.optimization.betas == (0.8, 0.9)
    assert type(recipe.optimization.learning_rate) is float
    assert recipe.model.image_shape == (64, 96)
    assert recipe.model.drop_path_schedule == ((0, 0.4), (260, 0.6))
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimization": {"epochs": "3"}}, "`optimization.epochs` is '3'"),
        ({"optimization": {"epochs": 1.5}}, "has to be a whole number"),
        ({"optimization": {"epochs": True}}, "has to be a whole number"),
        ({"optimization": {"betas": [0.9]}}, "`optimization.betas`"),
        ({"model": {"image_size": [64, 96, 3]}}, "`model.image_size` is [64, 96, 3]"),
        ({"model": {"image_size": None}}, "`model.image_size` is None"),
        ({"optimization": {"loss": "hinge"}}, "has to be one of cross_entropy, binary_cross_entropy"),
        ({"run": {"trackers": ["mlflow"]}}, "`run.trackers`"),
        ({"model": {"config": {"depth": [1]}}}, "Did you mean `model.config.depths`"),
        ({"optimization": {"epoch": 3}}, "Did you mean `optimization.epochs`"),
        ({"optimizatio": {}}, "Did you mean `optimization`"),
        ({"optimization": 3}, "`optimization` is 3; it has to be an object"),
        ([], "`recipe` is []"),
    ],
    ids=str,
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
    with pytest.raises(SViTError, match=r"recipe\.json.*is not JSON"):
        read_recipe(path)


def test_credentials_in_addresses_are_not_written():
    path = "https://user:hf_abcdefghijklmnopqrstuvwxyz@host/train.parquet?X-Amz-Signature=0123abcd&part=1"
    recipe = changed(TrainingRecipe(), data__shuffle_block=7)
    recipe = replace(recipe, data=replace(recipe.data, path=path))
    written = json.dumps(to_json(recipe))
    assert "user" not in written
    assert "hf_" not in written
    assert "0123abcd" not in written
    assert "https://***@host/train.parquet?X-Amz-Signature=***&part=1" in written
    # which is what a run that goes on compares with
    assert to_json(from_json(to_json(recipe))) == to_json(recipe)
