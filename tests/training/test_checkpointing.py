# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest

from svit_hf.errors import SViTError
from svit_hf.training.checkpointing import (
    MANIFEST,
    OPTIMIZER,
    PROGRESS,
    checkpoint_folder,
    checkpoints_of,
    digests_of,
    find_checkpoint,
    keep_as_best,
    new_checkpoint,
    problem_of,
    remove_old_checkpoints,
    restore_best,
    set_aside_newer,
    sweep,
)


def write(folder, content="content"):
    (folder / "raw").mkdir()
    (folder / "raw" / "model.safetensors").write_text(content)
    (folder / OPTIMIZER).write_text("optimizer")
    (folder / PROGRESS).write_text("{}")


def make(folder, content="content"):
    with new_checkpoint(folder) as unfinished:
        write(unfinished, content)


@pytest.fixture
def run_dir(tmp_path):
    for update in (3, 20, 100):
        make(checkpoint_folder(tmp_path, update), f"weights of {update}")
    return tmp_path


def newest(run_dir):
    return checkpoint_folder(run_dir, 100)


def shorten(folder):
    path = folder / "raw" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder):
    path = folder / OPTIMIZER
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def lose_a_file(folder):
    (folder / PROGRESS).unlink()


def lose_the_manifest(folder):
    (folder / MANIFEST).unlink()


def halve_the_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def list_no_files(folder):
    (folder / MANIFEST).write_text('{"files": []}')


def list_numbers(folder):
    (folder / MANIFEST).write_text('{"files": {"optimizer.pt": 3}}')


def forget_the_optimizer(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["files"][OPTIMIZER]
    (folder / MANIFEST).write_text(json.dumps(content))


def test_newest_checkpoint_is_found(run_dir):
    found = find_checkpoint(run_dir, "auto")
    assert found.folder == newest(run_dir)
    assert found.skipped == ()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shorten, "bytes instead of"),
        (flip_a_bit, "optimizer.pt is damaged"),
        (lose_a_file, "progress.json is missing"),
        (lose_the_manifest, "not finished"),
        (halve_the_manifest, "cannot be read"),
        (list_numbers, "cannot be read"),
        (list_no_files, "is not part of it"),
        (forget_the_optimizer, "optimizer.pt is not part of it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_checkpoint_is_passed_over_with_its_reason(run_dir, damage, reason):
    damage(newest(run_dir))
    found = find_checkpoint(run_dir, "auto")
    assert found.folder == checkpoint_folder(run_dir, 20)
    ((folder, problem),) = found.skipped
    assert folder == newest(run_dir)
    assert reason in problem
    with pytest.raises(SViTError, match="no valid checkpoint"):
        find_checkpoint(run_dir, str(newest(run_dir)))


def test_run_with_only_damaged_checkpoints_does_not_start_over(run_dir):
    for folder in checkpoints_of(run_dir):
        shorten(folder)
    with pytest.raises(SViTError, match="all damaged"):
        find_checkpoint(run_dir, "auto")


def test_new_run_starts_at_the_beginning(tmp_path):
    assert find_checkpoint(tmp_path, "auto").folder is None
    assert find_checkpoint(tmp_path, "never").folder is None


def test_never_does_not_replace_a_run(run_dir):
    with pytest.raises(SViTError, match="holds checkpoints up to step-00000100"):
        find_checkpoint(run_dir, "never")


def test_failed_writing_leaves_nothing_and_loses_nothing(run_dir):
    def fail():
        with new_checkpoint(newest(run_dir)) as folder:
            write(folder)
            raise PermissionError("Read-only file system")

    with pytest.raises(SViTError, match="Read-only file system"):
        fail()
    assert find_checkpoint(run_dir, "auto").folder == newest(run_dir)
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_what_a_killed_run_left_is_swept_up(run_dir):
    checkpoints = run_dir / "checkpoints"
    (checkpoints / ".step-00000200.x1y2.tmp" / "raw").mkdir(parents=True)
    (run_dir / ".report.json.x1y2.tmp").touch()
    # killed while a checkpoint was being replaced
    newest(run_dir).rename(checkpoints / ".step-00000100.old.tmp")
    assert find_checkpoint(run_dir, "auto").folder == checkpoint_folder(run_dir, 20)
    sweep(run_dir)
    assert find_checkpoint(run_dir, "auto").folder == newest(run_dir)
    assert not [*checkpoints.glob(".*"), *run_dir.glob(".*")]


def test_checkpoint_of_the_same_name_is_replaced(run_dir):
    shorten(newest(run_dir))
    make(newest(run_dir), "other")
    assert problem_of(newest(run_dir)) is None
    assert (newest(run_dir) / "raw" / "model.safetensors").read_text() == "other"


def test_rotation_keeps_the_newest(run_dir):
    remove_old_checkpoints(run_dir, 2)
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == ["step-00000020", "step-00000100"]


def test_future_that_was_given_up_is_set_aside(run_dir):
    assert set_aside_newer(run_dir, 19) == [checkpoint_folder(run_dir, 20), newest(run_dir)]
    assert find_checkpoint(run_dir, "auto").folder == checkpoint_folder(run_dir, 3)
    assert problem_of(run_dir / "set_aside" / "step-00000100") is None
    make(newest(run_dir), "again")
    set_aside_newer(run_dir, 19)
    assert (run_dir / "set_aside" / "step-00000100" / "raw" / "model.safetensors").read_text() == "again"


def test_best_is_what_the_checkpoint_says_or_set_aside(run_dir, tmp_path_factory):
    three = {"update": 3, "sha256": digests_of(checkpoint_folder(run_dir, 3))}
    keep_as_best(checkpoint_folder(run_dir, 20), run_dir)
    # of a checkpoint that is still there
    assert restore_best(run_dir, three, newest(run_dir))
    assert digests_of(run_dir / "best") == three["sha256"]
    # there already, and its checkpoint gone
    remove_old_checkpoints(run_dir, 2)
    assert restore_best(run_dir, three, newest(run_dir))
    # of the run that the checkpoint is from
    other = tmp_path_factory.mktemp("other")
    assert restore_best(other, three, newest(run_dir))
    assert digests_of(other / "best") == three["sha256"]
    # nowhere
    assert not restore_best(run_dir, {"update": 3, "sha256": {"raw": "0" * 64}}, newest(run_dir))
    assert not (run_dir / "best").exists()
    assert digests_of(run_dir / "set_aside" / "best") == three["sha256"]
    # a checkpoint that knows of none
    keep_as_best(newest(run_dir), run_dir)
    assert restore_best(run_dir, None, newest(run_dir))
    assert not (run_dir / "best").exists()


def test_best_outlives_its_checkpoint_and_has_no_optimizer(run_dir):
    best = run_dir / "best"
    keep_as_best(checkpoint_folder(run_dir, 3), run_dir)
    remove_old_checkpoints(run_dir, 1)
    assert sorted(path.relative_to(best).as_posix() for path in best.rglob("*") if path.is_file()) == [
        PROGRESS,
        "raw/model.safetensors",
    ]
    make(checkpoint_folder(run_dir, 200), "better")
    digests = keep_as_best(checkpoint_folder(run_dir, 200), run_dir)
    assert digests == {"raw": hashlib.sha256(b"better").hexdigest()}
    assert (best / "raw" / "model.safetensors").read_text() == "better"
    assert not list(run_dir.glob(".*"))
