# SPDX-License-Identifier: Apache-2.0
"""Several ranks on this machine's CPU, started by torchrun as on a cluster, on a parquet stream."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from rank_launch import CANCELLED, Launch, assert_same_run, log_of, run_ranks
from rank_programs import agree
from recipe_changes import changed
from safetensors.torch import load_file

from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.recipe_files import read_recipe
from svit_hf.training.train import train


pytestmark = [pytest.mark.slow, pytest.mark.process]

NUM_UPDATES = 20
# between copies of a model and a divided one; the worst cases were 4.8e-7, 1.7e-5 (relative), and 1.6e-4 (of the norm)
LOSS_TOLERANCE, GRADIENT_NORM_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-3, 1e-3


@pytest.fixture(scope="module")
def uninterrupted(toy_images, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two_ranks") / "uninterrupted"
    launch = Launch(toy_images, run_dir)
    assert "done" in launch.end(), launch.output.read_text()
    return run_dir


@pytest.mark.campaign
def test_killed_and_stopped_run_is_the_same_run(toy_images, uninterrupted, tmp_path):
    run_dir = tmp_path / "interrupted"
    kills = sorted(random.Random(5).sample(range(1, NUM_UPDATES - 2), 2))
    for update in kills:
        Launch(toy_images, run_dir).kill_at(update)
    # half a checkpoint, as of a run that was killed while it wrote
    newest = checkpoints_of(run_dir)[-1]
    half = newest.with_name("step-00000019")
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"half")

    launch = Launch(toy_images, run_dir)
    launch.wait_for_update(int(newest.name.removeprefix("step-")) + 1)
    # only one of them is told
    os.kill(launch.ranks()[1], signal.SIGTERM)
    output = launch.end()
    assert "passed over step-00000019: it has no manifest.json" in output
    assert "stopped after update" in output
    assert "exitcode  : 143" in output

    launch = Launch(toy_images, run_dir)
    output = launch.end()
    assert "done" in output, output
    assert_same_run(run_dir, uninterrupted)
    assert checkpoints_of(run_dir)[-1].name == f"step-{NUM_UPDATES:08d}"


@pytest.mark.campaign
def test_sums_of_three_ranks_do_not_depend_on_where_a_run_went_on(toy_images, tmp_path):
    # DDP rearranges its buckets after the first backward pass, and with them the order in which three ranks are added
    settings = {"optimization__batch_size": "12", "run__evaluate_every_epochs": "0", "run__keep_checkpoints": "99"}
    settings |= {"optimization__epochs": "1", "data__num_workers": "0"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert "done" in Launch(toy_images, whole, num_ranks=3, **settings).end()
    shutil.copytree(whole, resumed)
    for checkpoint in checkpoints_of(resumed)[2:]:
        shutil.rmtree(checkpoint)
    output = Launch(toy_images, resumed, num_ranks=3, **settings).end()
    assert "starts at      update 6" in output, output
    assert_same_run(whole, resumed)


@pytest.mark.campaign
def test_divided_model_trains_like_copies_and_goes_on_exactly(toy_images, uninterrupted, tmp_path):
    divided, stopped = tmp_path / "divided", tmp_path / "stopped"
    # batches of evaluation that are not equally many for both ranks
    settings = {"run__parallelism": "fsdp2", "run__evaluation_batch_size": "10"}
    output = Launch(toy_images, divided, **settings).end()
    assert "done" in output, output
    launch = Launch(toy_images, stopped, **settings)
    launch.wait_for_update(7)
    os.kill(launch.ranks()[0], signal.SIGTERM)
    assert "exitcode  : 143" in launch.end()
    assert checkpoints_of(stopped)[-1].name < f"step-{NUM_UPDATES:08d}"
    assert "done" in Launch(toy_images, stopped, **settings).end()

    # the same bits as without the interruption
    assert_same_run(divided, stopped)
    for name in ("raw", "ema"):
        whole, copies = (
            load_file(checkpoints_of(run)[-1] / name / "model.safetensors") for run in (divided, uninterrupted)
        )
        # and up to rounding the weights of copies of the model
        assert whole.keys() == copies.keys()
        for key in (key for key in whole if not CANCELLED.search(key)):
            difference = (whole[key].double() - copies[key].double()).norm()
            assert difference <= WEIGHT_TOLERANCE * max(1, copies[key].double().norm()), (key, difference)
    rows = [[row for row in log_of(run) if row["kind"] == "update"] for run in (divided, uninterrupted)]
    assert len(rows[0]) == NUM_UPDATES
    for ours, theirs in zip(*rows, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=LOSS_TOLERANCE)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=GRADIENT_NORM_TOLERANCE)
    config = json.loads((divided / "model" / "config.json").read_text())
    assert config["architectures"] == ["SViTForImageClassification"]


@pytest.mark.campaign
def test_one_rank_has_the_same_curve_and_coverage(uninterrupted, tmp_path, capsys):
    recipe = changed(read_recipe(uninterrupted / "recipe.json"), data__num_workers=0)
    train(recipe, tmp_path / "one")
    shown = capsys.readouterr().err
    two = (uninterrupted.parent.glob("uninterrupted.*.txt").__next__()).read_text()
    coverage = "an epoch is 10 updates of 16 images and shows 160 of 163 images once"
    assert coverage in shown
    # five row groups for two ranks of two workers
    assert coverage in two
    assert "streamed from 5 shards" in two
    rows = [
        [row for row in log_of(run_dir) if row["kind"] == "update"] for run_dir in (tmp_path / "one", uninterrupted)
    ]
    for name in ("update", "epoch", "learning_rate", "images"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    for run_dir in (tmp_path / "one", uninterrupted):
        counted = {row["num_images"] for row in log_of(run_dir) if row["kind"] == "evaluation"}
        assert counted == {101}


@pytest.mark.campaign
@pytest.mark.parametrize("room", [60_000, 200_000], ids=["log and recipe", "some of a checkpoint"])
def test_full_disk_ends_every_rank(toy_images, small_disk, tmp_path, room):
    run_dir = tmp_path / "run"
    (small_disk / "run").mkdir()
    run_dir.symlink_to(small_disk / "run")
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    launch = Launch(toy_images, run_dir, data__num_workers="0")
    while "disk is full" not in launch.output.read_text():
        assert launch.process.poll() is None, launch.output.read_text()
        time.sleep(0.1)
    launch.process.wait(timeout=10)
    output = launch.output.read_text()
    assert output.count("svit-hf: the disk is full") == 1, output
    assert "exitcode  : 2" in output
    # torchrun's own
    assert output.count("Traceback") == 1, output
    assert not list(run_dir.rglob("*.tmp"))


def test_ranks_agree_on_statistics_signals_and_errors(tmp_path):
    output = run_ranks(agree, tmp_path / "output.txt")
    assert {"agreed 0", "agreed 1"} <= set(output.splitlines()), output
