# SPDX-License-Identifier: Apache-2.0
"""Runs beside each other, each a process of `svit-hf train` with its share of the cores."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from svit_hf.errors import SViTError, TrainingInterruptedError
from svit_hf.files import write_text
from svit_hf.progress import Progress
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import to_json
from svit_hf.training.stopping import StopRequest


_SECONDS_BETWEEN_LOOKS = 0.2


def train_in_processes(
    runs: Sequence[tuple[Path, TrainingRecipe]],
    jobs: int,
    progress: Progress,
    *,
    resume: str = "auto",
    resume_changed: bool = False,
    command: str | None = None,
) -> None:
    """Train, some runs at the same time; beside the folder of each are its recipe, .json, and what it said, .txt.

    Args:
        runs: Folders, whose parents are there, and recipes.
        jobs: Runs at the same time.
        progress: Of the runs.
        resume: As in `train`.
        resume_changed: As in `train`.
        command: Not used: the report of each run has its own.

    Raises:
        SViTError: If a run failed. The others are stopped, and have saved what they have.
        TrainingInterruptedError: After SIGTERM or SIGINT, likewise.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    arguments = ["--resume", resume, *(["--resume-changed"] if resume_changed else [])]
    waiting, active = list(runs), dict[Path, subprocess.Popen[bytes]]()
    with StopRequest() as stop:
        try:
            while (waiting or active) and not stop.is_set:
                while waiting and len(active) < jobs:
                    run_dir, recipe = waiting.pop(0)
                    progress.say(str(run_dir))
                    active[run_dir] = _start(run_dir, recipe, arguments, threads)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for run_dir in [run_dir for run_dir, process in active.items() if process.poll() is not None]:
                    if status := active.pop(run_dir).returncode:
                        said = str(run_dir.with_suffix(".txt"))
                        raise SViTError(f"the run {str(run_dir)!r} ended with status {status}; see {said!r}.")
                    progress.advance()
        finally:
            for process in active.values():
                process.terminate()
            for process in active.values():
                process.wait()
    if stop.is_set:
        raise TrainingInterruptedError("stopped; the same command goes on.")


def _start(run_dir: Path, recipe: TrainingRecipe, arguments: Sequence[str], threads: str) -> "subprocess.Popen[bytes]":
    file = run_dir.with_suffix(".json")
    write_text(file, json.dumps(to_json(recipe), indent=1) + "\n")
    options = ["--recipe", str(file), "--output-dir", str(run_dir), *arguments]
    with run_dir.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "svit_hf", "train", *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
        )
