# SPDX-License-Identifier: Apache-2.0
"""What a run reports, and what is left of it when it is over: the model folder with its card, and report.json."""

import json
import shutil
from typing import Any

from transformers import PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.files import write_text
from svit_hf.hub.model_card import build_model_card, card_text_of_run
from svit_hf.hub.probe import write_probe
from svit_hf.hub.remote_code import save_with_code
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.provenance import commit_of_source, device_name, versions
from svit_hf.tasks.saved_models import open_task_model
from svit_hf.tasks.task import DenseTask
from svit_hf.training.checkpointing import BEST, EMA, RAW, checkpoint_folder, digests_of, replaced_folder
from svit_hf.training.loop import Run
from svit_hf.training.recipe_files import to_json
from svit_hf.training.task_of_recipe import Data


MODEL, CARD, REPORT = "model", "README.md", "report.json"


def write_outcome(run: Run, data: Data, command: str | None) -> dict[str, Any]:
    """Write report.json, and the model folder: the better of raw weights and average, at their best evaluation.

    Without an evaluation it is the average at the end, if there is one.

    Returns:
        The content of report.json.

    Raises:
        SViTError: If the best weights are not those that were evaluated.
    """
    report = report_of(run, data, command)
    best, last = run.run_dir / BEST, checkpoint_folder(run.run_dir, run.progress.update)
    if run.progress.best is not None and digests_of(best) != run.progress.best["sha256"]:
        raise SViTError(
            f"the weights in {str(best)!r} are not those that this run evaluated: something else has written to it. "
            "Move it away and give the same command again, which looks for the best anew."
        )
    weights = (best if run.progress.best is not None else last) / report["chosen"]
    # never beside a model that it does not describe
    (run.run_dir / REPORT).unlink(missing_ok=True)
    with replaced_folder(run.run_dir / MODEL) as folder:
        model: PreTrainedModel | None = None
        if isinstance(run.weights.model, SViTForImageClassification):
            # from the disk, where it is whole whatever the model here is
            classifier = SViTForImageClassification.from_pretrained(weights)
            save_with_code(classifier, folder, run.weights.processor)
            model = classifier
        else:
            # heads on an SViT are saved with their code
            shutil.copytree(weights, folder, dirs_exist_ok=True)
        # another network than the recipe's has no code of its own to be tried out with
        if isinstance(run.task, DenseTask) and isinstance(run.weights.model, run.task.head.model_class):
            model = open_task_model(weights).model
            write_probe(model, folder)
        if model is not None:
            build_model_card(model, card_text_of_run(report)).save(folder / CARD)
    write_text(run.run_dir / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def report_of(run: Run, data: Data, command: str | None) -> dict[str, Any]:
    """Return what there is to say about the best weights so far; without an evaluation, about the present ones."""
    best, progress, evaluation, teacher = run.progress.best, run.progress, data.evaluation, data.teacher
    return {
        "command": command,
        "recipe": to_json(run.recipe),
        "data": {
            "path": run.recipe.data.path,
            "description": data.train.description,
            "train_split": run.recipe.data.train_split,
            "eval_split": evaluation.split if evaluation is not None else None,
            "num_train": data.train.num_samples,
            "num_eval": evaluation.num_samples if evaluation is not None else 0,
            "label_names": list(data.task.labels),
        },
        "metrics": best["metrics"] if best else {},
        "chosen": best["chosen"] if best else EMA if run.weights.average is not None else RAW,
        "epoch": best["epoch"] if best else run.recipe.optimization.epochs,
        "update": best["update"] if best else progress.update,
        "num_parameters": sum(parameter.numel() for parameter in run.weights.model.parameters()),
        **({"teacher": {"sha256": teacher.sha256, "revision": teacher.revision}} if teacher is not None else {}),
        "multiply_adds": run.multiply_adds,
        "versions": versions(),
        "commit": commit_of_source(),
        "device": device_name(run.accelerator.device),
        "world_size": run.world_size,
        "seconds": round(progress.seconds, 1),
        "images": progress.num_images,
        "bad_images": progress.num_bad_images,
        "skipped_updates": progress.skipped_updates,
    }
