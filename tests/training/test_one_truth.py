# SPDX-License-Identifier: Apache-2.0
"""model/, best/, report.json, card and log describe the same weights, wherever a run was stopped or taken back to."""

import json
import shutil

import pytest
import torch
from recipe_changes import changed
from safetensors.torch import load_file

from svit_hf.errors import SViTError
from svit_hf.evaluation import evaluate_model
from svit_hf.tasks import classification
from svit_hf.training import loop, outcome
from svit_hf.training.checkpointing import checkpoint_folder, checkpoints_of
from svit_hf.training.run_log import read_log
from svit_hf.training.train import train


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_curves")]

METRICS = ("accuracy", "top5_accuracy", "loss", "calibration_error", "num_images")


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(scope="module")
def recipe(toy_recipe):
    """Return a recipe of three epochs that get better and better, with several checkpoints in each."""
    return changed(
        toy_recipe,
        optimization__epochs=3,
        optimization__learning_rate=5e-3,
        optimization__ema_decay=0.5,
        mixing__mixup_alpha=0.0,
        mixing__cutmix_alpha=0.0,
        run__seed=2,
        run__save_every_updates=4,
        run__keep_checkpoints=99,
    )


@pytest.fixture(scope="module")
def finished_once(recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    return run_dir, train(recipe, run_dir)


@pytest.fixture
def finished(finished_once, tmp_path):
    return shutil.copytree(finished_once[0], tmp_path / "finished"), finished_once[1]


def assert_one_truth(run_dir, recipe):
    report = json.loads((run_dir / "report.json").read_text())
    chosen = report["chosen"]
    told = report["metrics"][chosen]
    batch_size = recipe.optimization.device_batch_size
    found = evaluate_model(run_dir / "model", recipe.data, batch_size=batch_size).report.to_json()
    # to the last digit
    assert {name: found[name] for name in METRICS} == {name: told[name] for name in METRICS}
    best = load_file(run_dir / "best" / chosen / "model.safetensors")
    torch.testing.assert_close(load_file(run_dir / "model" / "model.safetensors"), best, rtol=0, atol=0)
    rows = [row for row in read_log(run_dir) if row["kind"] == "evaluation"]
    (row,) = [row for row in rows if (row["update"], row["weights"]) == (report["update"], chosen)]
    assert {name: row[name] for name in METRICS} == {name: told[name] for name in METRICS}
    assert f"{told['accuracy']:.4f}" in (run_dir / "model" / "README.md").read_text()
    return report


def metrics_of(report):
    metrics = {weights: {name: values[name] for name in METRICS} for weights, values in report["metrics"].items()}
    return report["update"], report["chosen"], metrics


def test_uninterrupted_run(finished, recipe):
    report = assert_one_truth(finished[0], recipe)
    # what the tests below are made for
    accuracies = [row["accuracy"] for row in read_log(finished[0]) if row.get("weights") == report["chosen"]]
    assert accuracies[0] < accuracies[1] < accuracies[2]


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (loop, "new_checkpoint", 4),
        (loop, "keep_as_best", 2),
        (loop.Run, "_draw", 2),
        (classification, "measure_classifier", 4),
        (outcome, "save_with_code", 1),
        (outcome, "write_text", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_after_a_kill(finished, recipe, tmp_path, monkeypatch, owner, name, call):
    run_dir, calls, original = tmp_path / "killed", [], getattr(owner, name)

    def die(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            train(recipe, run_dir)
    report = train(recipe, run_dir)
    assert_one_truth(run_dir, recipe)
    assert metrics_of(report) == metrics_of(finished[1])


@pytest.mark.parametrize("has_best", [True, False], ids=["best is there", "best is lost"])
def test_after_going_back_to_a_worse_future(finished, recipe, has_best, capsys):
    run_dir, report = finished
    assert report["update"] == 30
    if not has_best:
        shutil.rmtree(checkpoint_folder(run_dir, 20))
    # a checkpoint of the future that is given up
    shutil.copytree(checkpoint_folder(run_dir, 30), checkpoint_folder(run_dir, 31))
    # weights that are made worse: the best of the abandoned future, in best/, stays unbeaten
    worse = changed(recipe, optimization__learning_rate=10.0, optimization__schedule="constant")
    back = str(checkpoint_folder(run_dir, 28))
    train(worse, run_dir, resume=back, resume_changed=True)
    report = assert_one_truth(run_dir, worse)
    assert report["update"] == (20 if has_best else 30)
    assert ("looked for anew" in capsys.readouterr().err) == (not has_best)
    assert (run_dir / "set_aside" / "best").exists() == (not has_best)
    assert checkpoints_of(run_dir)[-1] == checkpoint_folder(run_dir, 30)
    assert (run_dir / "set_aside" / "step-00000031").exists()


def test_after_newer_checkpoints_were_damaged(finished, recipe):
    run_dir, report = finished
    for folder in checkpoints_of(run_dir)[-2:]:
        (folder / "manifest.json").unlink()
    train(recipe, run_dir)
    assert metrics_of(assert_one_truth(run_dir, recipe)) == metrics_of(report)
    # the damaged ones are replaced, or out of the way
    assert [path.name for path in checkpoints_of(run_dir)][-2:] == ["step-00000028", "step-00000030"]
    assert all((folder / "manifest.json").exists() for folder in checkpoints_of(run_dir))


def test_after_the_evaluation_was_changed(finished, recipe, capsys):
    run_dir = finished[0]
    other = changed(recipe, optimization__epochs=4, model__crop_pct=0.5)
    train(other, run_dir, resume_changed=True)
    assert "measured in another way" in capsys.readouterr().err
    assert assert_one_truth(run_dir, other)["update"] >= 30


def test_best_weights_that_something_else_has_written_are_not_delivered(finished, recipe, monkeypatch):
    run_dir, report = finished
    run_loop = loop.Run.run

    def run_and_spoil(self):
        progress = run_loop(self)
        best = run_dir / "best" / report["chosen"] / "model.safetensors"
        best.unlink()
        shutil.copy(checkpoint_folder(run_dir, 10) / "raw" / "model.safetensors", best)
        return progress

    monkeypatch.setattr(loop.Run, "run", run_and_spoil)
    with pytest.raises(SViTError, match="not those that this run evaluated"):
        train(recipe, run_dir)
    monkeypatch.undo()
    train(recipe, run_dir)
    assert metrics_of(assert_one_truth(run_dir, recipe)) == metrics_of(report)
