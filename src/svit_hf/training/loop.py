# SPDX-License-Identifier: Apache-2.0
"""The training loop.

Everything random is a function of (seed, update, micro-batch), and so is what is trained on: the loaders of
`svit_hf.data` give the batches of any epoch from any step on, and `Run` seeds torch anew before every batch. An update
is a fixed list of micro-batches, which ranks divide: another number of ranks makes the same training, but for the
rounding of sums, or bit for bit with `run.canonical_sums` (`ordered_sums.py`). The
learning rate is a function of the update. What is left to save is weights, optimizer, moving average and a few counts:
a run that is killed anywhere goes on as if nothing had happened.

Ranks exchange gradients, and one message per update (`agreement.py`). Its numbers are read one update later, so that
the host never waits for the device; an update that is not finite is skipped on the device itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn
from torch.distributed.tensor import DTensor

from svit_hf.data.decoding import BadImageTally
from svit_hf.data.loading import Batch, EvaluationLoader, TrainingLoader
from svit_hf.errors import DivergenceError, TrainingInterruptedError
from svit_hf.evaluation.outputs import EvaluationInterruptedError, Ranks
from svit_hf.tasks.task import Task
from svit_hf.training.accelerator import autocast_dtype, on_rank_zero
from svit_hf.training.agreement import Agreement, DelayedSignals
from svit_hf.training.checkpointing import (
    checkpoint_folder,
    checkpoints_of,
    keep_as_best,
    new_checkpoint,
    remove_old_checkpoints,
    set_aside_newer,
)
from svit_hf.training.console import Console, Stopwatch
from svit_hf.training.ending import StopRequest
from svit_hf.training.fully_sharded import accumulating, whole
from svit_hf.training.optimization import learning_rate, set_learning_rate
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.ordered_sums import OrderedSums
from svit_hf.training.progress import Progress, Setting
from svit_hf.training.run_log import EVALUATION, UPDATE, RunLog
from svit_hf.training.starting_model import set_drop_path_rate
from svit_hf.training.weights import TrainedWeights, as_others_load_it


SECONDS_PER_MINUTE = 60
CONTACT_SHEET = "predictions.png"


@dataclass
class Run:
    """Training until the end, or until told to stop; `run` is all of it.

    Attributes:
        model: The model as `Accelerator.prepare` returned it.
        weights: Its weights, optimizer and moving average, as they are saved.
        evaluation: This rank's share of the evaluation, if there is one.
        progress: Where to start.
        log: On rank 0 alone.
        saved_update: The update of the last checkpoint, if there is one.
        multiply_adds: Multiply-accumulates of one image.
        on_new_best: Called on rank 0 when a better model than all before stands in the folder of the run.
    """

    recipe: TrainingRecipe
    run_dir: Path
    accelerator: Accelerator
    model: nn.Module
    weights: TrainedWeights
    task: Task
    loader: TrainingLoader
    evaluation: EvaluationLoader | None
    progress: Progress
    setting: Setting
    log: RunLog | None
    console: Console
    saved_update: int | None
    multiply_adds: int
    on_new_best: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.num_updates = self.recipe.optimization.epochs * self.setting.updates_per_epoch
        micro_batches = self.setting.micro_batches
        self.world_size = self.accelerator.num_processes
        self.steps_per_update = micro_batches // self.world_size
        self.agreement = Agreement(self.weights.model, self.accelerator.device, micro_batches)
        self.sums = None
        if self.recipe.run.canonical_sums:
            self.sums = OrderedSums(self.model.parameters(), micro_batches)
        self.tally = BadImageTally(
            self.recipe.data.max_bad_share, self.progress.num_images, self.progress.num_bad_images
        )
        self.stop = StopRequest()
        self.stopwatch = Stopwatch(self.accelerator.device)
        # signals of the last update, which nobody has read yet
        self.pending: DelayedSignals | None = None
        self.ranks_stop = self.ranks_save = False
        self.started = self.last_save = time.monotonic()
        self.first_update = self.progress.update
        self.earlier_seconds = self.progress.seconds

    def run(self) -> Progress:
        """Train.

        Returns:
            Where training is at the end.

        Raises:
            TrainingInterruptedError: After SIGTERM or SIGINT to any rank, when everything is saved.
            DivergenceError: If too many updates in a row were not finite.
            DataError: If too many images are broken.
            SViTError: If a checkpoint cannot be written; on every rank.
        """
        with self.stop:
            while True:
                if self._is_time_to_evaluate():
                    self._evaluate()
                if self.progress.update == self.num_updates or self._is_out_of_patience():
                    return self.progress
                self._train_to_end_of_epoch()

    def close(self) -> None:
        """End what is shown and close the log."""
        self.console.close()
        if self.log is not None:
            self.log.close()

    # training

    def _train_to_end_of_epoch(self) -> None:
        epoch, updates_done = divmod(self.progress.update, self.setting.updates_per_epoch)
        self._set_drop_path(epoch)
        batches = self.loader.epoch(epoch, updates_done * self.steps_per_update)
        self.stopwatch.restart()
        for _ in range(updates_done, self.setting.updates_per_epoch):
            self._train_one_update(batches)
            if self.ranks_stop:
                self._leave()
            if self.ranks_save or self._is_update_to_save():
                self.save()
        self.save()

    def _train_one_update(self, batches: Iterator[Batch]) -> None:
        update, options = self.progress.update, self.recipe.optimization
        set_learning_rate(self.weights.optimizer, learning_rate(options, update, self.setting.updates_per_epoch))
        loss = torch.zeros((), device=self.accelerator.device)
        num_images = num_bad_images = 0
        for micro_batch in self.loader.places:
            batch = self._next(batches)
            self.tally.note(batch["bad_images"])
            num_bad_images += len(batch["bad_images"])
            num_images += len(batch["sample_ids"])
            seed = self._seed_of(update, micro_batch)
            torch.manual_seed(seed)
            self.agreement.start_micro_batch()
            # ranks exchange gradients in the backward pass of the last step, unless they are added in order
            exchanges = micro_batch == self.loader.places[-1] and self.sums is None
            with nullcontext() if exchanges else accumulating(self.model, self.accelerator):
                step_loss = self._loss(batch, seed)
                self.accelerator.backward(step_loss if self.sums else step_loss / self.steps_per_update)
            statistics = self.agreement.end_micro_batch()
            if self.sums is not None:
                self.sums.add(step_loss.detach() * len(batch["sample_ids"]), statistics)
            loss += step_loss.detach() * len(batch["sample_ids"])
        total_statistics = None
        if self.sums is not None:
            loss, total_statistics = self.sums.finish(len(statistics))
        # the norm is wanted without a limit, too
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), options.max_gradient_norm or float("inf"))
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        wants_save = self.accelerator.is_main_process and self._is_minute_to_save()
        wants_stop = self.stop.is_set or (self.log is not None and self.log.problem is not None)
        is_finite, signals = self.agreement.exchange(
            loss, norm, (num_images, num_bad_images, float(wants_stop), float(wants_save)), total_statistics
        )
        self.weights.step(is_finite, update)
        self.progress.update += 1
        self.console.advance()
        self.stopwatch.num_images += num_images * self.world_size
        # while the device computes this update, read what the one before it told
        previous, self.pending = self.pending, signals
        if previous is not None:
            self._absorb(previous, update)

    def _loss(self, batch: Batch, seed: int) -> torch.Tensor:
        inputs = send_to_device(batch, self.accelerator.device, non_blocking=True)
        with self.accelerator.autocast():
            return self.task.loss(self.model, inputs, seed, self.progress.update)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        began = time.perf_counter()
        batch = next(batches)
        self.stopwatch.waited += time.perf_counter() - began
        return batch

    def _seed_of(self, update: int, micro_batch: int) -> int:
        place = (self.recipe.run.seed, update, micro_batch)
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def _set_drop_path(self, epoch: int) -> None:
        rates = [rate for first, rate in sorted(self.recipe.model.drop_path_schedule) if first <= epoch]
        if rates:
            set_drop_path_rate(self.weights.model, rates[-1])

    # what ranks agreed on

    def _settle(self) -> None:
        """Read the signals that are still on their way."""
        pending, self.pending = self.pending, None
        if pending is not None:
            self._absorb(pending, self.progress.update)

    def _absorb(self, signals: DelayedSignals, update: int) -> None:
        """Count what an update told, and log it.

        Args:
            signals: Sums over ranks.
            update: Number of updates up to and including this one.
        """
        values, progress = signals.read(), self.progress
        self.tally.add(int(values.num_images), int(values.num_bad_images))
        progress.num_images, progress.num_bad_images = self.tally.num_images, self.tally.num_bad
        self.ranks_stop |= values.wants_stop > 0
        self.ranks_save |= values.wants_save > 0
        if values.is_finite:
            progress.window_loss += values.loss
            progress.window_images += int(values.num_images)
            progress.skipped_in_a_row = 0
        else:
            progress.window_skipped += 1
            progress.skipped_updates += 1
            progress.skipped_in_a_row += 1
        if update % self.recipe.run.log_every_updates == 0:
            self._log_window(update, values.gradient_norm)
        if progress.skipped_in_a_row >= self.recipe.run.max_non_finite_updates:
            self._give_up(update)

    def _log_window(self, update: int, gradient_norm: float) -> None:
        progress, per_epoch = self.progress, self.setting.updates_per_epoch
        row: dict[str, Any] = {
            "update": update,
            "epoch": round(update / per_epoch, 6),
            "loss": progress.window_loss / progress.window_images if progress.window_images else None,
            "learning_rate": learning_rate(self.recipe.optimization, update - 1, per_epoch),
            "gradient_norm": gradient_norm if np.isfinite(gradient_norm) else None,
            "images": progress.num_images,
            "bad_images": progress.num_bad_images,
            "skipped_updates": progress.window_skipped,
        }
        progress.window_loss, progress.window_images, progress.window_skipped = 0.0, 0, 0
        row |= self.stopwatch.timing()
        if self.log is not None:
            self.log.add(UPDATE, **row)
        self.accelerator.log({f"training/{name}": value for name, value in row.items() if value is not None}, update)
        done = self.progress.update - self.first_update
        per_update = (time.monotonic() - self.started) / done
        self.console.progress(row, per_update * (self.num_updates - self.progress.update))

    def _give_up(self, update: int) -> None:
        raise DivergenceError(
            f"{self.progress.skipped_in_a_row} updates in a row up to update {update} had a loss or gradient that is "
            f"not finite. None of them was made. The last checkpoint is {self._last_checkpoint()}; go on from it with "
            "a lower `optimization.learning_rate`, with `optimization.max_gradient_norm`, or with `run.precision` "
            "bf16 instead of fp16, and `--resume-changed`."
        )

    def _leave(self) -> None:
        self.save()
        raise TrainingInterruptedError(
            f"stopped after update {self.progress.update} of {self.num_updates} and saved "
            f"{self._last_checkpoint()}; the same command goes on from there."
        )

    def _last_checkpoint(self) -> str:
        folders = checkpoints_of(self.run_dir)
        return str(folders[-1]) if folders else "not there: none was saved yet"

    # checkpoints

    def _is_update_to_save(self) -> bool:
        every = self.recipe.run.save_every_updates
        return every > 0 and self.progress.update % every == 0

    def _is_minute_to_save(self) -> bool:
        every = self.recipe.run.save_every_minutes * SECONDS_PER_MINUTE
        return every > 0 and time.monotonic() - self.last_save >= every

    def save(self) -> None:
        """Save a checkpoint of the present update, unless there is one."""
        self._settle()
        self.ranks_save = False
        self.last_save = time.monotonic()
        if self.saved_update == self.progress.update:
            return
        self.progress.seconds = self.earlier_seconds + time.monotonic() - self.started
        write_weights = self.weights.snapshot(keep=self.log is not None)

        def write() -> None:
            assert self.log is not None
            self.progress.log_size = self.log.sync()
            with new_checkpoint(checkpoint_folder(self.run_dir, self.progress.update)) as folder:
                write_weights(folder)
                self.progress.save(folder, self.recipe, self.setting)
            for newer in set_aside_newer(self.run_dir, self.progress.update):
                self.console.say(f"set aside {newer.name}, which is newer and not of this training")
            remove_old_checkpoints(self.run_dir, self.recipe.run.keep_checkpoints)

        on_rank_zero(write, self.accelerator)
        self.saved_update = self.progress.update

    # evaluation

    def _is_time_to_evaluate(self) -> bool:
        epoch, rest = divmod(self.progress.update, self.setting.updates_per_epoch)
        every = self.recipe.run.evaluate_every_epochs
        if self.evaluation is None or rest or epoch == 0 or self.progress.evaluated_update == self.progress.update:
            return False
        return epoch % every == 0 or epoch == self.recipe.optimization.epochs

    def _is_out_of_patience(self) -> bool:
        patience, best = self.recipe.run.patience, self.progress.best
        if not patience or best is None or self.progress.evaluated_update != self.progress.update:
            return False
        epochs = self.progress.update // self.setting.updates_per_epoch - best["epoch"]
        if epochs >= patience:
            self.console.say(f"nothing better in {epochs} epochs, and `run.patience` is {patience}: the end")
        return epochs >= patience

    def _evaluate(self) -> None:
        """Evaluate raw weights and their average, and keep their checkpoint if it is the best."""
        self.save()
        metrics = {}
        try:
            for name, values in self.weights.variants():
                with values, whole(self.weights.model), as_others_load_it(self.weights.model):
                    metrics[name] = self._evaluate_once(name)
        except EvaluationInterruptedError:
            self._leave()
        self.progress.evaluated_update = self.progress.update
        # of equals, the average
        chosen = max(metrics, key=lambda name: (self._score_of(metrics[name]), name == "ema"))
        best = self.progress.best
        if best is None or self._score_of(metrics[chosen]) > self._score_of(best["metrics"][best["chosen"]]):
            self.progress.best = {
                "update": self.progress.update,
                "epoch": self.progress.update // self.setting.updates_per_epoch,
                "chosen": chosen,
                "metrics": metrics,
                "sha256": on_rank_zero(
                    lambda: keep_as_best(checkpoint_folder(self.run_dir, self.progress.update), self.run_dir),
                    self.accelerator,
                ),
            }
            if self.accelerator.is_main_process:
                self.on_new_best()
        on_rank_zero(self._draw, self.accelerator)

    def _score_of(self, metrics: dict[str, Any]) -> float:
        # average precision without any object, say
        value: float | None = metrics[self.task.best_metric]
        return float("-inf") if value is None else value

    def _draw(self) -> None:
        assert self.log is not None
        self.log.draw()

    def _evaluate_once(self, name: str) -> dict[str, Any]:
        assert self.evaluation is not None
        ranks = Ranks(
            device=self.accelerator.device,
            autocast_dtype=autocast_dtype(self.accelerator),
            reduce=lambda counts: self.accelerator.reduce(counts, "sum"),
            gather=lambda value: gather_object([value]),
            should_stop=lambda: self.stop.is_set,
        )
        report = self.task.measure(self.weights.model, self.evaluation, ranks)
        if self.log is not None:
            self.task.write_contact_sheet(self.weights.model, self.evaluation, self.run_dir / CONTACT_SHEET)
        metrics = {key: value for key, value in report.to_json().items() if key != "classes"}
        epoch = self.progress.update // self.setting.updates_per_epoch
        row = {
            "update": self.progress.update,
            "epoch": epoch,
            "weights": name,
            **{key: metrics[key] for key in report.log_fields},
            "evaluation_seconds": round(report.seconds, 3),
        }
        if self.log is not None:
            self.log.add(EVALUATION, **row)
        measured = self._score_of(metrics)
        self.accelerator.log({f"evaluation/{name}/{self.task.best_metric}": measured}, self.progress.update)
        self.console.say(f"epoch {epoch:>4}  {name:<3}  {report.line()}  {report.num_images} images")
        return metrics
