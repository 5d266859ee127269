# SPDX-License-Identifier: Apache-2.0
"""From a recipe to the things that train: accelerator, data, model, optimizer."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn

from svit_hf.data.augmentation import TrainingTransform
from svit_hf.data.evaluation_transform import EvaluationTransform
from svit_hf.data.loading import EvaluationLoader, TrainingLoader, workers_per_rank
from svit_hf.data.opening import labels_of, open_source
from svit_hf.data.sources import ImageSource, IndexedSource
from svit_hf.errors import SViTError
from svit_hf.files import is_disk_full
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.training.options import OptimizationOptions, RunOptions, TrainingRecipe


Result = TypeVar("Result")


@dataclass(frozen=True)
class Data:
    """Images of a run."""

    train: ImageSource
    evaluation: ImageSource | None
    num_workers: int

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return self.train.label_names


def make_accelerator(options: RunOptions, output_dir: Path) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        SViTError: If a tracker is not installed, or the precision or the way of dividing the model does not work here.
    """
    installed = {str(tracker.value) for tracker in get_available_trackers()}
    if missing := [tracker for tracker in options.trackers if tracker not in installed]:
        raise SViTError(
            f"`run.trackers` names {', '.join(missing)}, which cannot be found; install it with: pip install "
            f"{' '.join(missing)}"
        )
    if options.deterministic:
        # read when CUDA starts; without it, cuBLAS is not deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    has_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "0").lower() not in ("1", "true")
    precision: str = options.precision
    if precision == "auto":
        precision = "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not has_gpu:
        raise SViTError("`run.precision` is 'fp16', which needs a GPU; use bf16 or fp32 here.")
    if precision == "fp16" and options.parallelism == "fsdp2":
        raise SViTError("`run.precision` is 'fp16', whose loss scale was not tried with fsdp2; use bf16, fp32 or ddp.")
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        # batch norm statistics are averaged by `Agreement`
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        log_with=list(options.trackers) or None,
        project_dir=str(output_dir),
    )


def precision_of(accelerator: Accelerator) -> str:
    """Return the precision of the forward pass: fp32, bf16 or fp16."""
    return "fp32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """Return the dtype of the forward pass where it is not that of the weights."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision_of(accelerator))


def open_data(recipe: TrainingRecipe, accelerator: Accelerator) -> Data:
    """Open the images; rank 0 first, so that what is counted or downloaded is there for the others.

    Raises:
        SViTError: If there are no such images, or the two splits have other classes.
    """
    with accelerator.main_process_first():
        train = open_source(recipe.data, "train")
        evaluation = open_source(recipe.data, "eval") if recipe.run.evaluate_every_epochs else None
    if evaluation is not None and evaluation.label_names != train.label_names:
        raise SViTError(
            f"the training split has the classes {list(train.label_names)}, the evaluation split "
            f"{list(evaluation.label_names)}; they have to be the same."
        )
    return Data(train, evaluation, workers_per_rank(recipe.data))


def count_classes(source: ImageSource) -> list[int]:
    """Return the number of images of each class.

    Raises:
        SViTError: If the labels of the source cannot be read without its images.
    """
    counts = Counter(labels_of(_require_indexed(source, "optimization.class_weights")))
    return [counts[index] for index in range(len(source.label_names))]


def require_multi_label(recipe: TrainingRecipe) -> None:
    """Refuse what makes no sense where an image has any number of labels.

    Raises:
        SViTError: If the recipe asks for it.
    """
    options = recipe.optimization
    needed = {
        "optimization.loss": (options.loss, "binary_cross_entropy"),
        "optimization.class_weights": (options.class_weights, "none"),
        "distillation.teacher": (recipe.distillation.teacher, ""),
    }
    for name, (value, allowed) in needed.items():
        if value != allowed:
            raise SViTError(f"`{name}` is {value!r}; with `data.multi_label` it has to be {allowed!r}.")


def _require_indexed(source: ImageSource, argument: str) -> IndexedSource:
    if not isinstance(source, IndexedSource):
        raise SViTError(
            f"`{argument}` is 'balanced', but the classes of a stream are not counted. Leave it out, or set "
            "`data.streaming` to False."
        )
    return source


def micro_batches_of(options: OptimizationOptions, world_size: int) -> int:
    """Return into how many micro-batches an update is divided: as few as the devices can hold, if none are named.

    Raises:
        SViTError: If the images of an update cannot be divided evenly.
    """
    on_rank, rest = divmod(options.batch_size, world_size)
    if rest or not on_rank:
        raise SViTError(
            f"`optimization.batch_size` is {options.batch_size}; it has to be a multiple of the {world_size} ranks, "
            f"such as {max(1, on_rank) * world_size}."
        )
    least = -(-on_rank // options.device_batch_size)
    if options.micro_batches:
        number = options.micro_batches
        if options.batch_size % number or number % world_size or number < least * world_size:
            raise SViTError(
                f"`optimization.micro_batches` is {number}; it has to divide the `optimization.batch_size` of "
                f"{options.batch_size}, be a multiple of the {world_size} ranks, and leave at most the "
                f"`optimization.device_batch_size` of {options.device_batch_size} images for each."
            )
        return number
    return world_size * next(steps for steps in range(least, on_rank + 1) if on_rank % steps == 0)


def training_loader(
    recipe: TrainingRecipe,
    data: Data,
    processor: SViTImageProcessorPil,
    accelerator: Accelerator,
    micro_batches: int,
    num_ranges: int | None = None,
) -> TrainingLoader:
    """Return the loader of this rank's training batches.

    Raises:
        SViTError: If the source is too small, or cannot be sampled as the recipe says.
    """
    labels = None
    if recipe.data.sampling == "balanced":
        labels = cast(list[int], labels_of(_require_indexed(data.train, "data.sampling")))
    size = recipe.model.image_size
    transform = TrainingTransform(
        (size, size), tuple(processor.image_mean), tuple(processor.image_std), recipe.augmentation
    )
    return TrainingLoader(
        data.train,
        transform,
        batch_size=recipe.optimization.batch_size // micro_batches,
        micro_batches=micro_batches,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
        seed=recipe.run.seed,
        num_views=recipe.augmentation.num_views,
        shuffle_block=recipe.data.shuffle_block,
        labels=labels,
        num_ranges=num_ranges,
        limits=recipe.data.limits,
    )


def evaluation_loader(
    recipe: TrainingRecipe, data: Data, processor: SViTImageProcessorPil, accelerator: Accelerator
) -> EvaluationLoader | None:
    """Return the loader of this rank's share of the evaluation; none if there is no evaluation."""
    if data.evaluation is None:
        return None
    return EvaluationLoader(
        data.evaluation,
        EvaluationTransform(processor),
        batch_size=recipe.run.evaluation_batch_size or recipe.optimization.device_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
        limits=recipe.data.limits,
    )


def with_sync_batch_norm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Make batch norms use statistics of all ranks.

    Raises:
        SViTError: If the device has none.
    """
    if accelerator.device.type == "cpu":
        raise SViTError("`run.sync_batch_norm` is true, but PyTorch has synchronised batch norms on GPUs only.")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def on_rank_zero(function: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Call a function on rank 0 alone, and give every rank its result, or raise its error everywhere.

    Raises:
        SViTError: What the function raised, or that the disk is full.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = function()
        except SViTError as error:
            answer[1] = error
        except Exception as error:
            if not is_disk_full(error):
                raise
            answer[1] = disk_full_error(error)
    broadcast_object_list(answer)
    result, problem = answer
    if problem is not None:
        raise problem
    return result


def disk_full_error(error: Exception) -> SViTError:
    """Return what to say when something could not be written for want of room."""
    return SViTError(
        f"the disk is full: {error}. The checkpoints are whole; make room and give the same command again."
    )
