# SPDX-License-Identifier: Apache-2.0
"""Training on a disk that is really full: a small tmpfs."""

import shutil

import pytest
from rank_launch import log_of
from recipe_changes import changed

from svit_hf.errors import SViTError
from svit_hf.training.checkpointing import checkpoints_of, problem_of
from svit_hf.training.train import train


@pytest.mark.slow
def test_run_stops_with_a_message_and_goes_on_when_there_is_room(toy_recipe, small_disk, tmp_path):
    recipe = changed(toy_recipe, run__save_every_updates=4, run__evaluate_every_epochs=1)
    train(recipe, small_disk / "whole")
    needed = sum(path.stat().st_size for path in (small_disk / "whole").rglob("*") if path.is_file())
    expected = log_of(shutil.move(small_disk / "whole", tmp_path / "whole"))
    filler, messages = small_disk / "filler", set()
    # in steps that end in another file each
    for step in range(10):
        run_dir = small_disk / f"run-{step}"
        with filler.open("wb") as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - needed * step // 10 - step * 4096))
        with pytest.raises(SViTError, match="disk is full") as error:
            train(recipe, run_dir)
        assert error.value.exit_code == 2
        messages.add(str(error.value).split(":")[1])
        assert not [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")]
        assert not [folder for folder in checkpoints_of(run_dir) if problem_of(folder)]
        assert not (run_dir / "report.json").exists()
        filler.unlink()
        train(recipe, run_dir)
        assert log_of(run_dir) == expected
        shutil.rmtree(run_dir)
    assert len(messages) > 3, messages
