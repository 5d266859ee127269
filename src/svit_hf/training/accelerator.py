# SPDX-License-Identifier: Apache-2.0
"""The accelerator of a recipe: device, precision and ranks, and what these share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from svit_hf.errors import SViTError
from svit_hf.files import explaining_full_disk
from svit_hf.training.options import OptimizationOptions, TrainingRecipe


Result = TypeVar("Result")


def make_accelerator(recipe: TrainingRecipe, output_dir: Path) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        SViTError: If a tracker is not installed, or the precision or the way of dividing the model does not work here.
    """
    options = recipe.run
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
    mixed_precision = "no" if precision == "fp32" else precision
    # Accelerate keeps the precision of a process's first run and refuses any other, so a notebook could not try two;
    # Transformers' Trainer forgets it in the same way, for want of a public one
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=mixed_precision,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                # batch norm statistics are averaged by `Agreement`
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # where there are no objects, parts of a head have no gradient
                find_unused_parameters=recipe.task.name != "classification",
            )
        ],
        log_with=list(options.trackers) or None,
        project_dir=str(output_dir),
    )


def precision_of(accelerator: Accelerator) -> str:
    """Return the precision of the forward pass: fp32, bf16 or fp16."""
    return "fp32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """Return the dtype of the forward pass where it is not that of the weights."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision_of(accelerator))


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


def on_rank_zero(function: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Call a function on rank 0 alone, and give every rank its result, or raise its error everywhere.

    Raises:
        SViTError: What the function raised, or that the disk is full.
    """
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            with explaining_full_disk(say_disk_full):
                answer[0] = function()
        except SViTError as error:
            answer[1] = error
    broadcast_object_list(answer)
    result, problem = answer
    if problem is not None:
        raise problem
    return result


def say_disk_full(error: Exception) -> str:
    """Say that something could not be written for want of room."""
    return f"the disk is full: {error}. The checkpoints are whole; make room and give the same command again."
