# SPDX-License-Identifier: Apache-2.0
"""Whole runs of a tiny model in this process; `test_several_ranks.py` starts several."""

import io
import json
import shutil
import signal
import time
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
from rank_launch import assert_same_run, log_of, start_ranks
from rank_programs import run_commands
from recipe_changes import changed
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification

from svit_hf.data.decoding import DecodingError
from svit_hf.data.opening import open_source
from svit_hf.errors import DataError, DivergenceError, PushError, SViTError, TrainingInterruptedError
from svit_hf.hub import push
from svit_hf.tasks import classification
from svit_hf.training import loop
from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.recipe_files import read_recipe, to_json
from svit_hf.training.task_of_recipe import count_classes
from svit_hf.training.train import train


# for the compiler, which takes time for each layer
ONE_STAGE = {
    **{"hidden_sizes": [8], "depths": [1], "num_attention_heads": [1], "super_token_sizes": [2]},
    **{"num_sampling_iterations": [1], "use_layer_scale": [False], "projection_dim": 32, "drop_path_rate": 0.1},
}


pytestmark = pytest.mark.usefixtures("no_curves")


def weights_of(run_dir, name="raw"):
    return load_file(checkpoints_of(run_dir)[-1] / name / "model.safetensors")


def contents_of_folder(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished_once(toy_recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "finished"
    said = io.StringIO()
    with redirect_stderr(said):
        report = train(toy_recipe, run_dir, command="svit-hf train")
    return run_dir, report, said.getvalue()


@pytest.fixture
def finished(finished_once, tmp_path):
    """Return the folder, the report and the output of a run; the folder may be changed."""
    return shutil.copytree(finished_once[0], tmp_path / "finished"), *finished_once[1:]


def test_run_leaves_what_others_read(finished, toy_recipe):
    run_dir, report, shown = finished
    assert read_recipe(run_dir / "recipe.json") == toy_recipe
    assert json.loads((run_dir / "report.json").read_text()) == report
    assert {"curves.png", "log.jsonl", "metrics.csv"} <= {path.name for path in run_dir.iterdir()}
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert report["data"]["num_train"] == 163
    assert report["data"]["eval_split"] == "test"
    assert report["versions"]["torch"] == torch.__version__
    assert report["update"] == 10
    assert report["images"] == 160
    for weights in ("raw", "ema"):
        assert report["metrics"][weights]["num_images"] == 101
    model = AutoModelForImageClassification.from_pretrained(run_dir / "model")
    assert [model.config.id2label[index] for index in range(4)] == ["a", "b", "c", "d"]
    best = load_file(run_dir / "best" / report["chosen"] / "model.safetensors")
    torch.testing.assert_close(dict(model.state_dict()), best, rtol=0, atol=0)
    rows = log_of(run_dir)
    assert [row["update"] for row in rows if row["kind"] == "update"] == [2, 4, 6, 8, 10]
    assert {row["weights"] for row in rows if row["kind"] == "evaluation"} == {"raw", "ema"}
    for words in ("160 of 163 images", "GMACs", "16 images per update", "fp32", "top-1", "update 4/10", " mem "):
        assert words in shown


def test_finished_run_is_not_trained_again(finished, toy_recipe):
    run_dir = finished[0]
    before = log_of(run_dir)
    train(toy_recipe, run_dir)
    assert log_of(run_dir) == before


def test_stop_in_training_and_in_evaluation_changes_nothing(finished, toy_recipe, tmp_path, stop_at, monkeypatch):
    run_dir, evaluate = tmp_path / "stopped", classification.measure_classifier
    stop_at(4)
    with pytest.raises(TrainingInterruptedError, match="after update 6 of 10") as stop:
        train(toy_recipe, run_dir)
    assert stop.value.exit_code == 143
    stop_at(None)

    def stop_and_evaluate(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(classification, "measure_classifier", stop_and_evaluate)
    with pytest.raises(TrainingInterruptedError, match="after update 10 of 10"):
        train(toy_recipe, run_dir)
    monkeypatch.setattr(classification, "measure_classifier", evaluate)
    train(toy_recipe, run_dir)
    assert_same_run(finished[0], run_dir)


@pytest.mark.slow
@pytest.mark.process
def test_killed_process_goes_on_bit_for_bit(toy_recipe, tmp_path):
    recipe = changed(toy_recipe, optimization__epochs=2, run__save_every_updates=3, data__num_workers=1)
    (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
    output = tmp_path / "output.txt"
    command = ["train", "--recipe", tmp_path / "recipe.json", "--output-dir", tmp_path / "killed"]
    process = start_ranks(run_commands, output, command, num_ranks=1).processes[0]
    while "update 6/20" not in output.read_text():
        assert process.is_alive(), output.read_text()
        time.sleep(0.02)
    with pytest.raises(SViTError, match="another run is at work"):
        train(recipe, tmp_path / "killed")
    process.kill()
    process.join()
    assert checkpoints_of(tmp_path / "killed")[-1].name < "step-00000020"
    (tmp_path / "killed" / "checkpoints" / ".step-00000009.abcd.tmp").mkdir()
    train(recipe, tmp_path / "killed")
    train(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


def test_non_finite_updates_are_skipped_counted_and_end_the_run(toy_recipe, tmp_path, monkeypatch):
    loss = loop.Run._loss

    def is_bad_from_six(self, batch, seed):
        value = loss(self, batch, seed)
        return value * float("nan") if self.progress.update == 3 or self.progress.update >= 6 else value

    monkeypatch.setattr(loop.Run, "_loss", is_bad_from_six)
    recipe = changed(toy_recipe, run__max_non_finite_updates=3, run__save_every_updates=1, run__keep_checkpoints=9)
    with pytest.raises(DivergenceError, match=r"3 updates in a row up to update 9 .*step-000000") as error:
        train(recipe, tmp_path / "run")
    assert error.value.exit_code == 4
    folders = {int(path.name[5:]): path for path in checkpoints_of(tmp_path / "run")}
    raw = {update: load_file(folder / "raw" / "model.safetensors") for update, folder in folders.items()}
    trained = [name for name in raw[3] if "num_batches" not in name]
    for first, second, is_same in ((3, 4, True), (4, 5, False), (6, 7, True)):
        assert all(torch.equal(raw[first][name], raw[second][name]) for name in trained) == is_same
    assert all(tensor.isfinite().all() for tensor in raw[max(raw)].values())
    assert [row["skipped_updates"] for row in log_of(tmp_path / "run")] == [0, 1, 0, 2]


@pytest.mark.slow
def test_another_training_is_not_continued_by_accident(finished, toy_recipe, capsys):
    run_dir = finished[0]
    other = changed(toy_recipe, optimization__learning_rate=1e-4, run__log_every_updates=3)
    before = contents_of_folder(run_dir)
    with pytest.raises(SViTError, match=r"learning_rate: 0.002 there, 0.0001 here") as error:
        train(other, run_dir)
    # what changes nothing is not complained about
    assert "log_every" not in str(error.value)
    assert contents_of_folder(run_dir) == before
    longer = changed(toy_recipe, optimization__epochs=2)
    train(longer, run_dir, resume_changed=True)
    assert "NOT EXACT" in capsys.readouterr().err
    assert read_recipe(run_dir / "recipe.json") == longer
    assert max(row["update"] for row in log_of(run_dir)) == 20


def test_gradient_accumulation_is_one_big_batch(toy_recipe, tmp_path):
    # what makes steps differ is off: batch statistics, drop path, mixing, augmentation
    recipe = changed(
        toy_recipe,
        model__freeze_batch_norm=True,
        model__config__drop_path_rate=0.0,
        mixing__mixup_alpha=0,
        mixing__cutmix_alpha=0,
        run__evaluate_every_epochs=0,
        # the size of Adam's first steps does not depend on that of the gradient, but on its sign, also near zero
        optimization__epsilon=1e-3,
    )
    train(recipe, tmp_path / "one")
    train(changed(recipe, optimization__device_batch_size=4), tmp_path / "four")
    torch.testing.assert_close(weights_of(tmp_path / "one"), weights_of(tmp_path / "four"), rtol=1e-3, atol=1e-5)
    losses = [[row["loss"] for row in log_of(tmp_path / name)] for name in ("one", "four")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # without an evaluation, the average at the end is what is delivered
    delivered = load_file(tmp_path / "one" / "model" / "model.safetensors")
    torch.testing.assert_close(delivered, weights_of(tmp_path / "one", "ema"), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_gradient_checkpointing_trains_as_well_and_updates_statistics_once(finished, toy_recipe, tmp_path, kind):
    recipe = changed(toy_recipe, model__gradient_checkpointing=kind)
    train(recipe, tmp_path / "run")
    torch.testing.assert_close(weights_of(finished[0]), weights_of(tmp_path / "run"), rtol=1e-3, atol=1e-4)


class Foreign(nn.Module):
    """Return logits as a tensor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 4)

    def forward(self, pixel_values):
        return self.head(self.layers(pixel_values))


@pytest.mark.slow
def test_any_module_trains_under_the_same_loop(toy_recipe, tmp_path):
    recipe = changed(toy_recipe, optimization__epochs=2)
    torch.manual_seed(0)
    report = train(recipe, tmp_path / "whole", model=Foreign())
    assert report["num_parameters"] == sum(parameter.numel() for parameter in Foreign().parameters())
    torch.manual_seed(0)
    half = changed(recipe, run__max_non_finite_updates=1)
    run_loss = loop.Run._loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.Run,
            "_loss",
            lambda self, *args: run_loss(self, *args) * (float("nan") if self.progress.update == 12 else 1.0),
        )
        with pytest.raises(DivergenceError):
            train(half, tmp_path / "parts", model=Foreign())
    # other weights than those in the checkpoint, which win
    train(recipe, tmp_path / "parts", model=Foreign())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert set(load_file(tmp_path / "whole" / "model" / "model.safetensors")) == set(Foreign().state_dict())


@pytest.mark.slow
def test_linear_probe_changes_the_classifier_alone(finished, toy_recipe, tmp_path):
    run_dir = finished[0]
    values = {"name_or_path": str(run_dir / "model"), "freeze_backbone": True, "eval_mode": True, "config": {}}
    train(replace(toy_recipe, model=replace(toy_recipe.model, **values)), tmp_path / "probe")
    before, after = load_file(run_dir / "model" / "model.safetensors"), weights_of(tmp_path / "probe")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_distillation_and_trackers(finished, toy_recipe, tmp_path):
    run_dir = finished[0]
    values = {"distillation__teacher": str(run_dir / "model"), "run__trackers": ["tensorboard"]}
    train(changed(toy_recipe, **values), tmp_path / "student")
    with_teacher, without = log_of(tmp_path / "student"), log_of(run_dir)
    assert with_teacher[0]["loss"] != without[0]["loss"]
    assert list((tmp_path / "student").rglob("events.out.tfevents*"))


def test_teacher_with_other_classes_is_refused(finished, toy_recipe, tmp_path):
    path = finished[0] / "model" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {"0": "d", "1": "c", "2": "b", "3": "a"}
    path.write_text(json.dumps(config))
    with pytest.raises(SViTError, match="not the 4 of the data"):
        train(changed(toy_recipe, distillation__teacher=str(path.parent)), tmp_path / "student")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run__precision": "fp16"}, "needs a GPU"),
        ({"model__name_or_path": "nowhere"}, "cannot be loaded"),
        ({"model__config__depths": [1]}, "does not describe a model"),
        ({"optimization__batch_size": 1024}, "too few for one update"),
        # 32 pixels are one position in the last stage
        ({"optimization__batch_size": 1}, "leave 1 image to a step of each rank; it has to be 2 at least"),
        ({"run__evaluate_every_epochs": 0, "data__label_column": "nothing"}, "nothing"),
        # the data is not opened, and would be refused
        ({"run__trackers": ["wandb"], "data__path": "nowhere"}, "`run.trackers` names wandb, which cannot be found"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_recipe_is_refused_and_leaves_nothing(toy_recipe, tmp_path, values, message):
    with pytest.raises(SViTError, match=message):
        train(changed(toy_recipe, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_drop_path_follows_its_schedule(toy_recipe, tmp_path, monkeypatch):
    rates = []
    update = loop.Run._train_one_update

    def note(self, batches):
        rates.append(self.weights.model.svit.stages[-1].layers[-1].drop_path.rate)
        update(self, batches)

    monkeypatch.setattr(loop.Run, "_train_one_update", note)
    values = {"optimization__epochs": 2, "optimization__batch_size": 80}
    train(changed(toy_recipe, **values, model__drop_path_schedule=[[0, 0.2], [1, 0.3]]), tmp_path / "run")
    assert rates == pytest.approx([0.2] * 2 + [0.3] * 2)


def test_run_without_improvement_ends_early_also_after_a_stop(toy_recipe, tmp_path, stop_at):
    # weights that never change
    recipe = changed(
        toy_recipe,
        optimization__epochs=6,
        optimization__batch_size=80,
        optimization__learning_rate=0,
        optimization__final_learning_rate=0,
        model__freeze_batch_norm=True,
        run__patience=2,
    )
    report = train(recipe, tmp_path / "whole")
    assert (report["epoch"], max(row["epoch"] for row in log_of(tmp_path / "whole"))) == (1, 3)
    stop_at(3)
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "stopped")
    stop_at(None)
    for _ in range(2):
        train(recipe, tmp_path / "stopped")
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_class_weights_come_from_the_training_images(finished, toy_recipe, tmp_path):
    source = open_source(toy_recipe.data, "train")
    assert count_classes(source) == [41, 41, 41, 40]
    train(changed(toy_recipe, optimization__class_weights="balanced"), tmp_path / "run")
    balanced, plain = log_of(tmp_path / "run")[0]["loss"], log_of(finished[0])[0]["loss"]
    assert balanced != plain
    assert balanced == pytest.approx(plain, rel=0.02)
    streamed = changed(toy_recipe, optimization__class_weights="balanced", data__streaming=True)
    with pytest.raises(SViTError, match="classes of a stream are not counted"):
        train(streamed, tmp_path / "stream")


def test_broken_images_are_counted_and_too_many_end_the_run(toy_recipe, tmp_path, monkeypatch):
    from svit_hf.data import sources

    decode = sources.decode_image

    def fail_for_every_fifth(stored, limits):
        if hash(stored) % 5 == 0:
            raise DecodingError("broken")
        return decode(stored, limits)

    monkeypatch.setattr(sources, "decode_image", fail_for_every_fifth)
    with pytest.raises(DataError, match="could not be decoded") as error:
        train(toy_recipe, tmp_path / "strict")
    assert error.value.exit_code == 3
    report = train(changed(toy_recipe, data__max_bad_share=0.5), tmp_path / "lax")
    assert 10 < report["bad_images"] < 80


@pytest.mark.slow
def test_compiled_model_trains_and_saves_under_its_own_names(toy_recipe, tmp_path, monkeypatch):
    # the graphs are those of the default backend, without its C++ compiler, which takes minutes
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    recipe = changed(toy_recipe, model__config=ONE_STAGE, model__compile=True, run__evaluate_every_epochs=0)
    report = train(recipe, tmp_path / "run")
    assert report["versions"]["torch"] == torch.__version__
    assert report["update"] == 10
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.state_dict().keys() == weights_of(tmp_path / "run").keys()


def test_runs_of_one_process_may_have_different_precisions(finished, toy_recipe, tmp_path):
    train(changed(toy_recipe, run__precision="bf16"), tmp_path / "bf16")
    train(toy_recipe, tmp_path / "fp32")
    assert log_of(tmp_path / "fp32") == log_of(finished[0]) != log_of(tmp_path / "bf16")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "bf16").values()} == {torch.float32, torch.int64}


@pytest.mark.slow
def test_recipe_of_a_run_can_be_run_again(finished, toy_recipe, tmp_path):
    train(read_recipe(finished[0] / "recipe.json"), tmp_path / "again")
    assert_same_run(finished[0], tmp_path / "again")
    other = replace(toy_recipe, run=replace(toy_recipe.run, seed=1))
    train(other, tmp_path / "other")
    assert log_of(tmp_path / "other") != log_of(finished[0])


class TestPushing:
    @pytest.fixture
    def recipe(self, toy_recipe):
        return replace(toy_recipe, run=replace(toy_recipe.run, push_to="tester/toy"))

    def test_best_model_is_on_the_hub_at_the_end(self, hub, recipe, tmp_path):
        report = train(recipe, tmp_path / "run", command="svit-hf train")
        (tmp_path / "pushed").write_bytes(contents_of(hub, "tester/toy")["model.safetensors"])
        best = load_file(tmp_path / "run" / "best" / report["chosen"] / "model.safetensors")
        torch.testing.assert_close(load_file(tmp_path / "pushed"), best, rtol=0, atol=0)
        card = contents_of(hub, "tester/toy")["README.md"].decode()
        assert f"{report['metrics'][report['chosen']]['accuracy']:.4f}" in card
        assert not list((tmp_path / "run").glob(".push-*"))

    def test_failed_push_is_said_when_everything_is_saved(self, hub, recipe, tmp_path, monkeypatch):
        monkeypatch.setattr(push, "push_folder", refuse)
        with pytest.raises(PushError, match="1 pushes to tester/toy failed"):
            train(recipe, tmp_path / "run")
        assert (tmp_path / "run" / "report.json").exists()

    def test_hub_out_of_reach_is_found_before_training(self, recipe, tmp_path):
        with pytest.raises(PushError):
            train(recipe, tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()


def contents_of(hub, repo_id):
    return hub.repositories[repo_id].contents()


def refuse(*args, **kwargs):
    raise PushError("the Hub is closed")
