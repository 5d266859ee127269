# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from svit_hf.errors import SViTError
from svit_hf.training.checkpointing import locked_folder


def lock_elsewhere(run_dir):
    """Return a process that has locked a folder, and goes on until its input ends."""
    # without the package, whose import takes seconds
    code = """
import fcntl, os, sys
file = open(sys.argv[1] + "/.lock", "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
if os.fork() == 0:
    # as a worker that outlives its run
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-S", "-c", code, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_second_run_is_refused_until_the_first_is_dead_whatever_its_workers_do(tmp_path):
    first = lock_elsewhere(tmp_path)
    try:
        with pytest.raises(SViTError, match="another run is at work"), locked_folder(tmp_path):
            pass
        first.kill()
        first.wait()
        with locked_folder(tmp_path):
            assert (tmp_path / ".lock").exists()
    finally:
        first.stdin.close()
        first.stdout.close()


def test_lock_is_given_back_at_the_end(tmp_path):
    for _ in range(2):
        with locked_folder(tmp_path):
            pass
    process = lock_elsewhere(tmp_path)
    process.communicate()


def test_folder_that_was_made_for_nothing_is_gone(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path / "a" / "run"):
        raise KeyError
    assert not (tmp_path / "a" / "run").exists()
    with locked_folder(tmp_path / "run"):
        (tmp_path / "run" / "recipe.json").touch()
    assert (tmp_path / "run" / "recipe.json").exists()


def test_other_things_and_files_are_no_folder_for_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(SViTError, match="holds other things"), locked_folder(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SViTError, match="cannot be written"), locked_folder(tmp_path / "thesis.txt" / "run"):
        pass
