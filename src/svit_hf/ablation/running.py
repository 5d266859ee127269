# SPDX-License-Identifier: Apache-2.0
"""Train every variant with every seed; what is finished stays, and what was stopped goes on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svit_hf.ablation.table import Outcome
from svit_hf.ablation.variants import change_recipe, folder_of, name_of
from svit_hf.errors import SViTError, TrainingInterruptedError
from svit_hf.files import write_text
from svit_hf.progress import Progress
from svit_hf.training.ending import StopRequest
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.outcome import REPORT
from svit_hf.training.recipe_files import to_json
from svit_hf.training.run_log import CURVE_METRICS
from svit_hf.training.starting_model import make_model
from svit_hf.training.task_of_recipe import dense_task, model_of
from svit_hf.training.train import train
from svit_hf.urls import find_credentials


_SECONDS_BETWEEN_LOOKS = 0.2


def run_variants(
    recipe: TrainingRecipe,
    variants: Sequence[Mapping[str, Any]],
    num_seeds: int,
    output_dir: Path,
    jobs: int = 1,
    **options: Any,
) -> tuple[list[Outcome], str]:
    """Train variants of a recipe, the same seeds for each.

    Args:
        recipe: What they have in common; seeds count from its own.
        variants: Fields and their values.
        num_seeds: Runs of each variant.
        output_dir: Gets a folder for each variant, and in it the folder of a run for each seed.
        jobs: Runs at the same time; more than one are processes of their own.
        options: More arguments of `train`.

    Returns:
        The outcomes, in the order of the variants, and the name of the metric.

    Raises:
        SViTError: If a variant is impossible, or nothing is evaluated; before the first run, where it can be known.
            Or if a process failed.
        TrainingInterruptedError: After SIGTERM or SIGINT, when everything is saved.
    """
    if recipe.run.evaluate_every_epochs == 0:
        raise SViTError("`run.evaluate_every_epochs` is 0; without evaluations there is nothing to compare.")
    if jobs > 1 and find_credentials(json.dumps(asdict(recipe))) is not None:
        raise SViTError(
            f"`jobs` is {jobs}, but the recipe has a password in an address, and no file that a run starts from has "
            "one; leave it to the environment, or have one job."
        )
    seeds = [recipe.run.seed + number for number in range(num_seeds)]
    recipes = [[change_recipe(recipe, variant, seed) for seed in seeds] for variant in variants]
    folders = [output_dir / folder_of(variant) for variant in variants]
    if len(set(folders)) < len(folders):
        raise SViTError("`over` names a value twice.")
    for changed in recipes:
        _require_model(changed[0])
    # one seed of all variants after the other: what is there after a while can be compared
    runs = [
        (folder / f"seed-{seed}", of_variant[number])
        for number, seed in enumerate(seeds)
        for folder, of_variant in zip(folders, recipes, strict=True)
    ]
    missing = [(run_dir, of_run) for run_dir, of_run in runs if finished_report(run_dir, of_run) is None]
    for run_dir, _ in missing:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    with Progress(len(missing), "runs", every_seconds=0) as progress:
        if jobs > 1:
            train_in_processes(missing, jobs, progress, **options)
        else:
            for run_dir, of_run in missing:
                progress.say(str(run_dir))
                train(of_run, run_dir, **options)
                progress.advance()
    reports = [[_read_report(folder / f"seed-{seed}") for seed in seeds] for folder in folders]
    metric = next((name for name in CURVE_METRICS if name in _best(reports[0][0])), None)
    if metric is None:
        raise SViTError(f"`data.eval_split` is {recipe.data.eval_split!r}, which was not evaluated.")
    return [
        _outcome(name_of(variant), of_variant, metric) for variant, of_variant in zip(variants, reports, strict=True)
    ], metric


def _require_model(recipe: TrainingRecipe) -> None:
    """Make the model of a recipe, for two classes if the data will name them.

    Raises:
        SViTError: If it is impossible.
    """
    labels = ["one", "other"]
    if recipe.task.name == "classification":
        make_model(recipe.model, labels, 0)
    else:
        model_of(recipe, dense_task(recipe, recipe.task.labels or labels))


def finished_report(run_dir: Path, recipe: TrainingRecipe) -> dict[str, Any] | None:
    """Return the report of a run that is over, if it was this one and the report says what the table does."""
    try:
        report = _read_report(run_dir)
        return report if report["recipe"] == to_json(recipe) and "multiply_adds" in report else None
    except (OSError, ValueError, KeyError):
        return None


def _read_report(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
    return report


def _best(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best evaluation, of the raw weights or of their average; empty if there was none."""
    best: dict[str, Any] = report["metrics"].get(report["chosen"], {})
    return best


def _outcome(name: str, reports: Sequence[Mapping[str, Any]], metric: str) -> Outcome:
    return Outcome(
        name=name,
        scores=[_best(report)[metric] for report in reports],
        num_parameters=reports[0]["num_parameters"],
        multiply_adds=reports[0]["multiply_adds"],
        seconds=[report["seconds"] for report in reports],
    )


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
