# SPDX-License-Identifier: Apache-2.0
"""From a recipe and a folder to a trained model: put a `Run` together, start or continue it, write what came out."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from svit_hf.data.loading import TrainingLoader, explaining_killed_workers
from svit_hf.errors import DivergenceError, SViTError, TrainingInterruptedError
from svit_hf.files import explaining_full_disk, write_text
from svit_hf.hub.model_card import card_text_of_run
from svit_hf.hub.push import BackgroundPush
from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTPreTrainedModel
from svit_hf.multiply_adds import count_multiply_adds
from svit_hf.progress import duration, quiet_libraries
from svit_hf.provenance import device_name
from svit_hf.tasks.task import Task
from svit_hf.training.accelerator import (
    make_accelerator,
    micro_batches_of,
    on_rank_zero,
    precision_of,
    say_disk_full,
)
from svit_hf.training.checkpointing import (
    BEST,
    RECIPE,
    FoundCheckpoint,
    checkpoint_folder,
    find_checkpoint,
    locked_folder,
    restore_best,
    sweep,
)
from svit_hf.training.console import Console
from svit_hf.training.distillation import StudentWithProjections
from svit_hf.training.ending import ending_together
from svit_hf.training.fully_sharded import shard
from svit_hf.training.loop import Run
from svit_hf.training.optimization import make_optimizer
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.outcome import MODEL, REPORT, report_of, write_outcome
from svit_hf.training.progress import Progress, SavedProgress, Setting
from svit_hf.training.recipe_files import flatten, to_json
from svit_hf.training.run_log import EVALUATION, UPDATE, RunLog
from svit_hf.training.starting_model import freeze, require_batch_for_norms
from svit_hf.training.task_of_recipe import Data, evaluation_loader, model_of, open_data, training_loader
from svit_hf.training.weights import LAYOUT, TrainedWeights, WeightAverage


# options whose change makes accuracies incomparable
EVALUATED_BY = ("data.", "model.image_size", "model.crop_pct")


@dataclass
class _Start:
    """Place where a run starts.

    Attributes:
        progress: Where training is.
        past: The same in the words of the checkpoint, whose updates may be other ones.
        setting: What fixes the sequence of updates.
        loader: Training batches of this rank.
        checkpoint: Where weights and optimizer are; none for a new run.
        is_changed: Whether the checkpoint is of another training.
        notes: What there is to say about all this.
    """

    progress: Progress
    past: Progress
    setting: Setting
    loader: TrainingLoader
    checkpoint: Path | None
    is_changed: bool
    notes: list[str]


def train(
    recipe: TrainingRecipe,
    output_dir: Path,
    *,
    resume: str = "auto",
    resume_changed: bool = False,
    model: nn.Module | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a model, or continue to; every rank calls this.

    Args:
        recipe: What to do.
        output_dir: Folder of the run, the same and visible for every rank.
        resume: `auto` continues from the newest valid checkpoint of the run, if there is one; `never` refuses a folder
            that has checkpoints; a checkpoint's folder is continued from.
        resume_changed: Continue with other data or another recipe than those of the checkpoint, which is then
            not the same training any more.
        model: What to train instead of `recipe.model`: any module that maps pixel values `(B, 3, H, W)` to logits, or
            to an output that has them as `.logits`.
        command: The command line, for the report.

    Returns:
        The report, which is in report.json, too.

    Raises:
        SViTError: If recipe, data, machine and folder do not go together.
        TrainingInterruptedError: After SIGTERM or SIGINT, when everything is saved.
        DivergenceError: If too many updates in a row were not finite.
        PushError: On rank 0, if `recipe.run.push_to` cannot be reached, which is found out before the training, or if
            a push has failed, after everything is saved.
    """
    output_dir = Path(output_dir)
    accelerator = make_accelerator(recipe, output_dir)
    with ending_together(), explaining_killed_workers(), explaining_full_disk(say_disk_full), ExitStack() as stack:
        found = on_rank_zero(lambda: _enter_folder(stack, output_dir, resume), accelerator)
        # nothing is written before everything is known to go together
        data = open_data(recipe, accelerator)
        start = _find_start(recipe, data, accelerator, found, resume_changed)
        if model is None:
            model = model_of(recipe, data.task)
        run, facts = _make_run(recipe, output_dir, accelerator, data, start, model)
        for tracker in accelerator.trackers:
            stack.callback(tracker.finish)
        stack.callback(run.close)
        run.console.block("training", facts)
        for note in start.notes:
            run.console.say(note)
        try:
            with quiet_libraries(), _pushing(run, data, command):
                run.run()
                report = on_rank_zero(lambda: write_outcome(run, data, command), accelerator)
                run.console.block("done", _summary(report, data.task.best_metric, output_dir))
        except (TrainingInterruptedError, DivergenceError):
            # every rank is here
            accelerator.wait_for_everyone()
            raise
        return report


def _make_run(
    recipe: TrainingRecipe,
    output_dir: Path,
    accelerator: Accelerator,
    data: Data,
    start: _Start,
    model: nn.Module,
) -> tuple[Run, dict[str, object]]:
    """Put a run together, and take its folder over; what the recipe asks for and cannot be had is found out before.

    Returns:
        The run, and what the start block says.
    """
    options, setting = recipe.optimization, start.setting
    if isinstance(model, SViTPreTrainedModel):
        # what pipelines and the model's own loss go by
        model.config.problem_type = "multi_label_classification" if data.train.is_multi_label else None
    model = _placed(model, recipe, accelerator)
    multiply_adds = count_multiply_adds(model, recipe.model.image_shape, accelerator.device)
    # afterwards: operators of kernels are unknown to the counter
    use_kernels(model, "auto")
    freeze(model, recipe.model)
    rank_batch = options.batch_size // setting.micro_batches
    require_batch_for_norms(model, rank_batch, recipe.model.image_shape, accelerator.device)
    student = None if data.teacher is None else data.teacher.add_projections(model, recipe.run.seed)
    wrapped, weights = _prepare(model, student, recipe, data.task, accelerator)
    if start.checkpoint is not None:
        weights.load(start.checkpoint)
    if not on_rank_zero(lambda: _take_over(recipe, output_dir, start), accelerator):
        start.progress.best = None
        start.notes.append("the best weights so far are not there any more; the best is looked for anew")
    num_updates = options.epochs * setting.updates_per_epoch
    console = Console(accelerator.is_main_process, num_updates, start.progress.update)
    updates = {UPDATE: start.past.update, EVALUATION: start.past.evaluated_update}
    log = RunLog(output_dir, updates, start.past.log_size, console.say) if accelerator.is_main_process else None
    accelerator.init_trackers(recipe.name, {name: str(value) for name, value in flatten(to_json(recipe)).items()})
    is_saved = not start.is_changed and start.checkpoint == checkpoint_folder(output_dir, start.progress.update)
    run = Run(
        recipe=recipe,
        run_dir=output_dir,
        accelerator=accelerator,
        model=wrapped,
        weights=weights,
        task=data.task,
        loader=start.loader,
        evaluation=evaluation_loader(recipe, data, accelerator),
        progress=start.progress,
        setting=setting,
        log=log,
        console=console,
        saved_update=start.progress.update if is_saved else None,
        multiply_adds=multiply_adds,
    )
    return run, _facts(run, data, output_dir)


def _placed(model: nn.Module, recipe: TrainingRecipe, accelerator: Accelerator) -> nn.Module:
    """Bring a model to its device, with the kind of batch norm that is wanted.

    Raises:
        SViTError: If the device does not have that kind.
    """
    if recipe.run.sync_batch_norm and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise SViTError("`run.sync_batch_norm` is true, but PyTorch has synchronised batch norms on GPUs only.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, SViTPreTrainedModel) and recipe.run.parallelism == "ddp":
        # FSDP takes no such layout
        model.to(memory_format=LAYOUT)  # type: ignore[call-arg]
    return model.to(accelerator.device)


def _prepare(
    model: nn.Module,
    student: StudentWithProjections | None,
    recipe: TrainingRecipe,
    task: Task,
    accelerator: Accelerator,
) -> tuple[nn.Module, TrainedWeights]:
    """Wrap a model, with what trains beside it, for its ranks, and give it an optimizer and an average."""
    options = recipe.optimization
    trained = model if student is None else student
    projections = None if student is None else student.projections
    if recipe.model.compile:
        # in place, so that names stay what they are
        trained.compile()
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    if recipe.run.parallelism == "fsdp2" and accelerator.num_processes > 1:
        shard(model)
        wrapped, optimizer = model, make_optimizer(model, options)
    else:
        wrapped, prepared = accelerator.prepare(trained, make_optimizer(trained, options))
        optimizer = prepared.optimizer
    # with it, they stay as they are
    if isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters:
        _settle_gradient_buckets(wrapped, recipe.model.image_shape)
    average = WeightAverage(model, options.ema_decay, options.ema_warmup) if options.ema_decay else None
    return wrapped, TrainedWeights(model, optimizer, average, accelerator.scaler, task.processor, projections)


def _settle_gradient_buckets(model: DistributedDataParallel, image_shape: tuple[int, int]) -> None:
    """Let DDP put gradients into their final buckets now, which it does after the first backward pass.

    In which order more than two ranks are added up depends on the buckets. The first update after a start would
    differ in the last bits from the same update of a run that goes on.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    output = model(torch.zeros(2, 3, *image_shape, device=model.device))
    parts = output if isinstance(output, tuple) else (getattr(output, "logits", output),)
    torch.stack([part.sum() for part in parts]).sum().backward()
    model.zero_grad()
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def _enter_folder(stack: ExitStack, output_dir: Path, resume: str) -> FoundCheckpoint:
    """Lock the folder of the run, tidy it up, and find what to continue from."""
    stack.enter_context(locked_folder(output_dir))
    sweep(output_dir)
    return find_checkpoint(output_dir, resume)


def _take_over(recipe: TrainingRecipe, output_dir: Path, start: _Start) -> bool:
    """Make the folder that of this run from where it starts, and return whether its best weights are there."""
    has_best = restore_best(output_dir, start.progress.best, start.checkpoint or output_dir)
    write_text(output_dir / RECIPE, json.dumps(to_json(recipe), indent=2) + "\n")
    return has_best


def _find_start(
    recipe: TrainingRecipe,
    data: Data,
    accelerator: Accelerator,
    found: FoundCheckpoint,
    resume_changed: bool,
) -> _Start:
    """Find out where to start, and refuse to continue what was another training."""
    saved = SavedProgress.read(found.folder) if found.folder is not None else None
    world_size = accelerator.num_processes
    num_ranges = None
    if saved is not None and not resume_changed:
        # other ranks and workers share the same micro-batches, and read the same stream in the same ranges
        micro_batches, num_ranges = saved.setting.micro_batches, saved.setting.num_ranges
        if micro_batches % world_size:
            allowed = [str(number) for number in range(1, micro_batches + 1) if micro_batches % number == 0]
            raise SViTError(
                f"the updates of the checkpoint {str(found.folder)!r} have {micro_batches} micro-batches, which "
                f"{world_size} ranks cannot share evenly; go on with {', '.join(allowed)} ranks."
            )
    else:
        micro_batches = micro_batches_of(recipe.optimization, world_size)
    loader = training_loader(recipe, data, accelerator, micro_batches, num_ranges or None)
    sources = {"training": data.train, "evaluation": data.evaluation}
    setting = Setting(
        micro_batches,
        loader.updates_per_epoch,
        loader.num_ranges if data.train.is_streaming else 0,
        world_size if recipe.run.sync_batch_norm else 1,
        {name: source.fingerprint() for name, source in sources.items() if source is not None},
        data.teacher.sha256 if data.teacher is not None else "",
    )
    notes = [f"passed over {folder.name}: {problem}" for folder, problem in found.skipped]
    if saved is None:
        return _Start(Progress(), Progress(), setting, loader, None, is_changed=False, notes=notes)
    progress = saved.progress
    differences = saved.differences(recipe, setting)
    if differences:
        if not resume_changed:
            raise SViTError(
                f"the checkpoint {str(found.folder)!r} is of another training: {'; '.join(differences)}. Go on as it "
                "was, name another `output_dir`, or give `--resume-changed` to go on all the same, which is not exact."
            )
        progress = saved.moved_to(setting)
        notes.append(f"NOT EXACT: the checkpoint is of another training: {'; '.join(differences)}")
        if any(difference.startswith(EVALUATED_BY) for difference in differences):
            progress.best = None
            notes.append("the best so far was measured in another way; the best is looked for anew")
    return _Start(progress, saved.progress, setting, loader, found.folder, bool(differences), notes)


@contextmanager
def _pushing(run: Run, data: Data, command: str | None) -> Iterator[None]:
    """Push every new best model in the background, if the recipe says so; the end waits, and raises what failed."""
    repo_id, accelerator = run.recipe.run.push_to, run.accelerator
    if not repo_id:
        yield
        return
    push = BackgroundPush(repo_id, run.run_dir, log=run.console.say)
    on_rank_zero(push.check_access, accelerator)

    def push_best() -> None:
        report = report_of(run, data, command)
        best = run.run_dir / BEST / report["chosen"]
        push.submit(best, card_text_of_run(report, location=repo_id), title=f"epoch {report['epoch']}")

    run.on_new_best = push_best
    with push:
        yield


def _facts(run: Run, data: Data, output_dir: Path) -> dict[str, object]:
    """Return what the start block says."""
    recipe, setting, accelerator = run.recipe, run.setting, run.accelerator
    options = recipe.optimization
    parameters = list(run.weights.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    rank_batch = options.batch_size // setting.micro_batches
    scaling = f" = {options.learning_rate:g} * {options.batch_size}/{options.base_batch_size}"
    evaluation = data.evaluation.description if data.evaluation is not None else "none"
    norms = len(run.agreement.statistics) // 2
    height, width = recipe.model.image_shape
    return {
        "recipe": recipe.name,
        "data": data.train.description,
        **({"note": "; ".join(data.train.remarks)} if data.train.remarks else {}),
        "coverage": run.loader.coverage.text(),
        "evaluation": evaluation,
        "model": f"{type(run.weights.model).__name__}, {sum(map(torch.numel, parameters)) / 1e6:.2f} M parameters, "
        f"{trained / 1e6:.2f} M of them trained",
        "cost": f"{run.multiply_adds / 1e9:.3g} GMACs per image of {height} x {width} pixels",
        **({"teacher": data.teacher.description(recipe.model.image_shape)} if data.teacher is not None else {}),
        "updates": f"{run.num_updates} = {options.epochs} epochs of {setting.updates_per_epoch}",
        "batch": f"{options.batch_size} images per update = {setting.micro_batches} micro-batches * {rank_batch}, "
        f"shared by {accelerator.num_processes} ranks{', added up in order' if recipe.run.canonical_sums else ''}",
        "learning rate": f"{options.peak_learning_rate:g}{scaling if options.base_batch_size else ''}",
        "batch norms": f"{norms}, each with statistics of {rank_batch} images" if norms else "frozen",
        "precision": precision_of(accelerator),
        "device": f"{device_name(accelerator.device)}, {run.world_size} ranks, {data.num_workers} workers each",
        "written to": output_dir,
        "starts at": f"update {run.progress.update}",
    }


def _summary(report: Mapping[str, Any], best_metric: str, output_dir: Path) -> dict[str, object]:
    """Return what the last block says."""
    lines: dict[str, object] = {}
    for weights, metrics in report["metrics"].items():
        taken = ", taken" if weights == report["chosen"] else ""
        value = "none" if metrics[best_metric] is None else f"{metrics[best_metric]:.2%}"
        if "accuracy_interval" in metrics:
            low, high = metrics["accuracy_interval"]
            value += f" ({low:.2%} to {high:.2%})"
        title = {"accuracy": "top-1", "mean_iou": "mean IoU"}.get(best_metric, "mAP")
        lines[f"{weights} {title}"] = f"{value} in epoch {report['epoch']}{taken}"
    bad = f", {report['bad_images']} of them broken" if report["bad_images"] else ""
    skipped = f"; {report['skipped_updates']} updates skipped" if report["skipped_updates"] else ""
    return lines | {
        "images": f"{report['images']}{bad}, in {duration(report['seconds'])}{skipped}",
        "model": output_dir / MODEL,
        "report": output_dir / REPORT,
    }
