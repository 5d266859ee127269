# SPDX-License-Identifier: Apache-2.0
import inspect
import json
import re
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.cli import main
from svit_hf.data.augmentation import mix_batch
from svit_hf.errors import SViTError
from svit_hf.recipes import RECIPES
from svit_hf.recipes.command import TrainCommand, find_recipe
from svit_hf.recipes.finetune import finetune
from svit_hf.training.optimization import learning_rate, make_criterion, make_optimizer, set_learning_rate
from svit_hf.training.recipe_files import from_json, to_json
from svit_hf.training.starting_model import freeze


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_documented_and_comes_back_from_json(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe
    documentation = inspect.getdoc(RECIPES[name])
    assert f"--recipe {name} " in documentation
    assert "Expectation:" in documentation


# those of segmentation and detection: tests/recipes/test_guides.py
@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().task.name == "classification"])
def test_recipe_takes_a_step_on_the_tiny_model(name):
    recipe = RECIPES[name]()
    model = SViTForImageClassification(tiny_config())
    freeze(model, recipe.model)
    optimizer = make_optimizer(model, recipe.optimization)
    set_learning_rate(optimizer, learning_rate(recipe.optimization, 100, 10))
    pixel_values, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    if recipe.mixing.is_on:
        pixel_values, targets = mix_batch(pixel_values, targets, recipe.mixing, 5, 0, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = make_criterion(recipe.optimization)(model(pixel_values).logits, targets)
    loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert "classifier.weight" in changed
    assert ("svit.stages.0.layers.0.mlp.fc1.weight" in changed) == (not recipe.model.freeze_backbone)
    trains_norms = not (recipe.model.eval_mode or recipe.model.freeze_batch_norm)
    assert ("svit.pooler.batch_norm.running_mean" in changed) == trains_norms


def test_official_recipe_is_what_the_paper_says():
    recipe = RECIPES["imagenet_small_224"]()
    options = recipe.optimization
    assert (options.epochs, options.batch_size, options.peak_learning_rate) == (300, 1024, 1e-3)
    assert options.decay_layer_scale
    assert recipe.augmentation.num_views == 3
    rates = {
        name: RECIPES[f"imagenet_{name}_224"]().model.config["drop_path_rate"] for name in ("small", "base", "large")
    }
    assert rates == {"small": 0.1, "base": 0.4, "large": 0.6}
    fine = RECIPES["imagenet_base_384"]()
    assert fine.model.eval_mode
    assert fine.model.image_size == 384
    assert {learning_rate(fine.optimization, update, 10) for update in (0, 150, 299)} == {5e-6}


def test_unknown_recipe_is_named_with_the_nearest_one():
    with pytest.raises(SViTError, match="Did you mean `imagenet_small_224`"):
        find_recipe("imagenet_smal_224")


def test_recipe_is_read_from_a_file(tmp_path):
    recipe = replace(RECIPES["smoke"](), name="mine")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_json(recipe)))
    assert find_recipe(str(path)) == recipe


def parsed(*arguments):
    return TrainCommand.parse(["--output-dir", "run", *arguments], "svit-hf train")


@pytest.mark.parametrize(
    ("arguments", "part", "field", "value"),
    [
        (["--optimization.learning-rate", "1e-3"], "optimization", "learning_rate", 1e-3),
        (["--optimization.epochs=7"], "optimization", "epochs", 7),
        (["--optimization.betas", "0.8", "0.9"], "optimization", "betas", (0.8, 0.9)),
        (["--optimization.loss", "binary_cross_entropy"], "optimization", "loss", "binary_cross_entropy"),
        (["--data.path", "1234"], "data", "path", "1234"),
        (["--data.streaming", "True"], "data", "streaming", True),
        (["--data.num_workers", "3"], "data", "num_workers", 3),
        (["--data.num-workers", "None"], "data", "num_workers", None),
        (["--run.trackers", "tensorboard", "wandb"], "run", "trackers", ("tensorboard", "wandb")),
        (
            ["--model.drop-path-schedule", "0", "0.4", "260", "0.6"],
            "model",
            "drop_path_schedule",
            ((0, 0.4), (260, 0.6)),
        ),
        (["--run.deterministic", "True"], "run", "deterministic", True),
        (["--model.freeze-batch-norm", "false"], "model", "freeze_batch_norm", False),
        (
            ["--model.config.depths", "[1, 1, 1, 1]"],
            "model",
            "config",
            {"drop_path_rate": 0.1, "depths": [1, 1, 1, 1]},
        ),
        (["--model.config.drop-path-rate=0.2"], "model", "config", {"drop_path_rate": 0.2}),
        (["--model.config", '{"depths": [1]}'], "model", "config", {"depths": [1]}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_option_changes_one_field_of_the_recipe(arguments, part, field, value):
    recipe, options = finetune(), parsed("--recipe", "finetune", *arguments).options
    expected = replace(recipe, **{part: replace(getattr(recipe, part), **{field: value})})
    assert options == expected
    assert type(getattr(getattr(options, part), field)) is type(value)


def test_options_of_a_recipe_of_a_file(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_json(replace(finetune(), name="mine"))))
    assert parsed(f"--recipe={path}", "--name", "other").options == replace(finetune(), name="other")


def test_values_that_only_go_together_may_come_in_any_order():
    arguments = ["--recipe", "imagenet_small_224", "--optimization.epochs", "2"]
    options = parsed(*arguments, "--optimization.warmup-epochs", "1").options
    assert (options.optimization.epochs, options.optimization.warmup_epochs) == (2, 1)
    with pytest.raises(SViTError, match=r"`optimization.warmup_epochs` is 5; it has to be at most the 2 epochs"):
        parsed(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimization.epoch", "1"], "--optimization.epochs"),
        (["--optimization.epochs", "1.5"], "--optimization.epochs"),
        (["--optimization.loss", "hinge"], "binary_cross_entropy"),
        (["--optimization.epochs", "0"], "`optimization.epochs` is 0; it has to be at least 1."),
        (["--model.config.depth", "[1]"], "Did you mean `model.config.depths`"),
        (["--model.config", '{"depth": [1]}'], "Did you mean `model.config.depths`"),
        (["--model.config", "depth"], "--model.config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_refuses_what_cannot_be_meant_and_writes_nothing(arguments, message, tmp_path, capsys):
    try:
        status = main(["train", "--recipe", "smoke", "--output-dir", str(tmp_path / "run"), *arguments])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_first_process_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("svit_hf.training.train.train", lambda *arguments, **options: {})
    run = str(tmp_path / "run")
    for rank, num_times in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "--recipe", "smoke", "--output-dir", run]) == 0
        assert capsys.readouterr().out.count(f"svit-hf predict {run} ") == num_times


def test_help_shows_the_values_of_the_recipe(capsys):
    for arguments, default in (([], "5"), (["--recipe", "finetune"], "1")):
        with pytest.raises(SystemExit) as exit_:
            main(["train", *arguments, "--help"])
        assert exit_.value.code == 0
        shown = " ".join(re.sub("[│─]", " ", capsys.readouterr().out).split())
        assert "Epochs of linear growth from `warmup_learning_rate`; may be a fraction." in shown
        assert f"may be a fraction. (default: {default})" in shown
        assert "linear_probe" in shown
