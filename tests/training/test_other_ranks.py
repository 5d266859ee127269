# SPDX-License-Identifier: Apache-2.0
"""A run that goes on with other numbers of ranks is the same training."""

import io
import os
import shutil
import signal
import tarfile

import pyarrow.parquet as pq
import pytest
from rank_launch import CANCELLED, Launch, assert_same_run, log_of
from recipe_changes import changed
from safetensors.torch import load_file

from svit_hf.data.counts import SourceIndex
from svit_hf.errors import SViTError
from svit_hf.training import train as module
from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.train import train


pytestmark = pytest.mark.usefixtures("no_curves")

# of the norm of a tensor, or of 1 where that is smaller, and of losses; the worst cases are in docs/results.md
TOLERANCE = 1e-5
# 36 images in six micro-batches, which 1, 2, 3 or 6 ranks divide; norms over few values with a tiny epsilon would blow
# rounding up
SETTINGS = {
    "optimization__batch_size": "36",
    "optimization__micro_batches": "6",
    "optimization__epochs": "3",
    "run__save_every_updates": "1",
    "model__image_size": "64",
    "model__config.batch_norm_eps": "1e-3",
}
# ranks, the update after which they are stopped, and how
PARTS = ((1, 2, signal.SIGTERM), (2, 5, signal.SIGKILL), (3, 8, signal.SIGTERM))
SOURCES = {
    "stream": {"data__streaming": "True"},
    "indexed": {"data__streaming": "False"},
    "folder": {"data__streaming": "False"},
    "tars": {"data__streaming": "True"},
}


@pytest.fixture(scope="module")
def sources(toy_images, tmp_path_factory):
    """Return the same images as parquet, in a folder, and in tars with their index."""
    folder, tars = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("tars")
    files = {}
    for split in ("train", "test"):
        rows = pq.read_table(toy_images / f"{split}.parquet").to_pylist()
        for part in range(3):
            file = tars / f"{split}-{part}.tar"
            with tarfile.open(file, "w") as archive:
                for number, row in list(enumerate(rows))[part::3]:
                    for suffix, data in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                        member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
            files.setdefault(split, {})[file.name] = (len(rows[part::3]),)
        for number, row in enumerate(rows):
            file = folder / split / "abcd"[row["label"]] / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row["image"]["bytes"])
    index = tmp_path_factory.mktemp("index") / "index.json"
    SourceIndex(tuple("0123"), files).write(index)
    SOURCES["tars"]["data__index"] = str(index)
    return {"stream": toy_images, "indexed": toy_images, "folder": folder, "tars": tars}


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("source", "canonical"),
    [*((source, "True") for source in SOURCES), ("stream", "False"), ("indexed", "False")],
)
def test_other_numbers_of_ranks_make_the_same_training(sources, tmp_path, source, canonical):
    settings = SETTINGS | SOURCES[source] | {"run__canonical_sums": canonical}
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert "done" in Launch(sources[source], whole, num_ranks=1, **settings).end()
    for num_ranks, update, number in PARTS:
        launch = Launch(sources[source], shared, num_ranks=num_ranks, **settings)
        launch.wait_for_update(update)
        os.kill(launch.ranks()[-1], number)
        output = launch.end()
        assert number == signal.SIGKILL or "stopped after update" in output, output
        assert f"shared by {num_ranks} ranks" in output
    output = Launch(sources[source], shared, num_ranks=1, **settings).end()
    assert "done" in output, output
    is_exact = canonical == "True"
    rows = [[row for row in log_of(run) if row["kind"] == "update"] for run in (whole, shared)]
    assert [row["update"] for row in rows[0]] == list(range(1, 13))
    if is_exact:
        assert log_of(whole) == log_of(shared)
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=TOLERANCE)
    folders = [checkpoints_of(run)[-1] for run in (whole, shared)]
    worst = 0.0
    for name in ("raw", "ema"):
        first, second = (load_file(folder / name / "model.safetensors") for folder in folders)
        assert first.keys() == second.keys()
        for key, value in first.items():
            if not is_exact and CANCELLED.search(key):
                continue
            difference = (value.double() - second[key].double()).norm().item()
            worst = max(worst, difference / max(1, value.double().norm().item()))
    print(f"{source}: largest difference of a tensor {worst:.1e}")  # noqa: T201 - for docs/results.md
    assert worst <= (0 if is_exact else TOLERANCE)


def test_ranks_that_do_not_divide_the_micro_batches_are_refused(toy_recipe, tmp_path, monkeypatch):
    recipe = changed(toy_recipe, optimization__micro_batches=2, run__evaluate_every_epochs=0)
    train(recipe, tmp_path)
    monkeypatch.setattr(module.Accelerator, "num_processes", 3)
    with pytest.raises(SViTError, match=r"have 2 micro-batches, which 3 ranks cannot share evenly; go on with 1, 2"):
        train(recipe, tmp_path)


@pytest.mark.parametrize("number", [3, 5, 1])
def test_impossible_micro_batches_are_refused(toy_recipe, tmp_path, number):
    recipe = changed(toy_recipe, optimization__micro_batches=number, optimization__device_batch_size=8)
    with pytest.raises(SViTError, match=f"`optimization.micro_batches` is {number}; it has to divide"):
        train(recipe, tmp_path)


def test_a_run_knows_its_data(toy_recipe, tmp_path):
    from picture_data import picture, write_folder

    write_folder(tmp_path / "data", range(40), ["cat", "dog"])
    recipe = changed(toy_recipe, data__path=str(tmp_path / "data"), data__validation_share=0.2, data__eval_split=None)
    train(recipe, tmp_path / "run")
    (tmp_path / "data" / "dog" / "new.png").write_bytes(picture(99))
    with pytest.raises(SViTError, match=r"is of another training: .*training data: .*'dog/new\.png' is new"):
        train(recipe, tmp_path / "run")
    (tmp_path / "data" / "dog" / "new.png").unlink()
    train(recipe, tmp_path / "run")
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "hound")
    with pytest.raises(SViTError, match=r"the classes were cat, dog and are cat, hound"):
        train(recipe, tmp_path / "run")


def test_balanced_sampling_goes_on_exactly(toy_recipe, tmp_path):
    recipe = changed(toy_recipe, data__sampling="balanced", run__save_every_updates=4, run__keep_checkpoints=99)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "part")
    for checkpoint in checkpoints_of(tmp_path / "part")[1:]:
        shutil.rmtree(checkpoint)
    train(recipe, tmp_path / "part")
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    streamed = changed(recipe, data__streaming=True)
    with pytest.raises(SViTError, match=r"`data.sampling` is 'balanced', but the classes of a stream are not counted"):
        train(streamed, tmp_path / "stream")
