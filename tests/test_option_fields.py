# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from recipe_changes import changed

from svit_hf.data.options import AugmentationOptions, DataOptions, MixingOptions
from svit_hf.errors import SViTError
from svit_hf.option_fields import check_options, freely_changing, option
from svit_hf.training.options import ModelOptions, OptimizationOptions, TrainingRecipe


@dataclass
class Part:
    share: float = option(0.5, above=0, at_most=1, changes_freely=True)
    pair: tuple[float, float] = option((0.0, 0.5), at_least=0, below=1)
    number: int | None = option(None, at_least=2)
    plain: float = 1.0


@dataclass
class Whole:
    name: str = option("x", changes_freely=True)
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize("part", [Part(), Part(share=1), Part(number=2), Part(pair=(0.9, 0.0)), Part(plain=-3)])
def test_values_within_their_bounds_pass(part):
    check_options(Whole(part=part))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "`part.share` is 0; it has to be above 0 and at most 1."),
        ({"share": 1.1}, "`part.share` is 1.1; it has to be above 0 and at most 1."),
        ({"pair": (0.1, 1)}, "`part.pair` is (0.1, 1); it has to be at least 0 and below 1."),
        ({"number": 1}, "`part.number` is 1; it has to be at least 2."),
        ({"plain": float("nan")}, "`part.plain` is nan; it has to be finite."),
        ({"share": float("nan")}, "`part.share` is nan"),
    ],
)
def test_values_out_of_their_bounds_are_named(values, message):
    with pytest.raises(SViTError) as error:
        check_options(Whole(part=Part(**values)))
    assert message in str(error.value)


def test_names_of_what_changes_freely():
    assert freely_changing(Whole) == {"name", "part.share"}


def test_free_options_of_a_recipe():
    assert freely_changing(TrainingRecipe) == {
        "name",
        "data.num_workers",
        "data.max_bad_share",
        "data.index",
        "optimization.device_batch_size",
        "run.log_every_updates",
        "run.evaluate_every_epochs",
        "run.patience",
        "run.evaluation_batch_size",
        "run.save_every_updates",
        "run.save_every_minutes",
        "run.keep_checkpoints",
        "run.max_non_finite_updates",
        "run.trackers",
        "run.push_to",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run__seed", 2**64),
        ("run__seed", -1),
        ("run__keep_checkpoints", 0),
        ("run__patience", -1),
        ("optimization__betas", [2, 0.5]),
        ("optimization__epsilon", -1),
        ("optimization__epsilon", 0),
        ("optimization__learning_rate", float("inf")),
        ("optimization__weight_decay", float("nan")),
        ("optimization__batch_size", 0),
        ("optimization__label_smoothing", 1.0),
        ("model__crop_pct", 0),
        ("model__crop_pct", 1.5),
        ("model__image_size", 0),
        ("model__drop_path_schedule", [[0, 1.0]]),
        ("model__drop_path_schedule", [[-1, 0.5]]),
        ("model__config", {"layer_scale_init_value": float("nan")}),
        ("data__num_workers", -1),
        ("augmentation__ratio", [0.5, float("inf")]),
        ("mixing__mixup_alpha", float("inf")),
        ("distillation__temperature", 0),
    ],
)
def test_impossible_value_of_a_recipe_is_refused_by_its_name(name, value):
    with pytest.raises(SViTError, match=name.rpartition("__")[2]):
        changed(TrainingRecipe(), **{name: value})


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (ModelOptions, {"image_size": 0}, r"`model.image_size` is 0; it has to be at least 1"),
        (OptimizationOptions, {"epochs": -2}, r"`optimization.epochs` is -2"),
        (DataOptions, {"num_workers": -1}, r"`num_workers` is -1; it has to be"),
        (AugmentationOptions, {"num_views": 0}, r"`num_views` is 0; it has to be"),
        (MixingOptions, {"mixup_alpha": -0.1}, r"`mixup_alpha` is -0.1; it has to be"),
    ],
)
def test_values_are_checked_in_python_too(options, values, message):
    for make in (options, partial(replace, options())):
        with pytest.raises(SViTError, match=message):
            make(**values)
