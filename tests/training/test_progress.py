# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from recipe_changes import changed

from svit_hf.training.options import TrainingRecipe
from svit_hf.training.progress import Progress, SavedProgress, Setting


SETTING = Setting(micro_batches=2, updates_per_epoch=10, num_ranges=4)


@pytest.fixture
def saved(tmp_path):
    progress = Progress(update=15, evaluated_update=10, best={"update": 10, "epoch": 1})
    progress.save(tmp_path, TrainingRecipe(), SETTING)
    return SavedProgress.read(tmp_path)


def test_what_was_saved_is_read(saved):
    assert saved.progress == Progress(update=15, evaluated_update=10, best={"update": 10, "epoch": 1})
    assert saved.setting == SETTING


def test_same_training_has_no_differences(saved):
    free = {"name": "other", "run__patience": 3, "data__num_workers": 7, "optimization__device_batch_size": 1}
    assert saved.differences(changed(TrainingRecipe(), **free), SETTING) == []


def test_differences_are_named_with_both_values(saved):
    recipe = changed(TrainingRecipe(), run__seed=1, model__config={"drop_path_rate": 0.1})
    differences = saved.differences(recipe, replace(SETTING, micro_batches=4))
    assert "run.seed: 0 there, 1 here" in differences
    assert "model.config.drop_path_rate: None there, 0.1 here" in differences
    assert "micro_batches: 2 there, 4 here" in differences


def test_option_that_the_checkpoint_does_not_know_had_its_default(saved):
    del saved.recipe["optimization"]["class_weights"]
    assert saved.differences(TrainingRecipe(), SETTING) == []
    weighted = changed(TrainingRecipe(), optimization__class_weights="balanced")
    assert saved.differences(weighted, SETTING) == ["optimization.class_weights: 'none' there, 'balanced' here"]


def test_progress_moves_to_the_same_share_of_the_epochs(saved):
    moved = saved.moved_to(replace(SETTING, updates_per_epoch=4))
    assert (moved.update, moved.evaluated_update) == (6, 0)
