# SPDX-License-Identifier: Apache-2.0
"""What training changes, weights, optimizer and moving average, and how it gets into a checkpoint and out again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.tensor import DTensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.model.modeling_svit import SViTPreTrainedModel
from svit_hf.training.checkpointing import EMA, OPTIMIZER, RAW, WEIGHTS
from svit_hf.training.fully_sharded import (
    class_of,
    is_sharded,
    load_optimizer_state,
    load_weights_into_shards,
    optimizer_state_of,
    weights_of,
)


# that of the activations of SViT; in another one, DDP would have to copy every gradient
LAYOUT = torch.channels_last


@dataclass
class TrainedWeights:
    """What training changes.

    Attributes:
        model: The model, unwrapped.
        optimizer: AdamW, fused.
        average: Moving average of the model, if there is one.
        scaler: Scaler of the loss under fp16.
        processor: Image processor that is saved beside the weights.
        projections: What trains beside the model and is no part of it, if there is anything.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: "WeightAverage | None"
    scaler: GradScaler | None
    processor: BaseImageProcessor
    projections: nn.Module | None = None

    def step(self, is_finite: torch.Tensor, update: int) -> None:
        """Make an update with the gradients that are there, and forget them.

        Args:
            is_finite: Scalar on the device; where it is false, weights and optimizer stay as they are.
            update: Index of the update, from 0.
        """
        # the interface between fused optimizers and `GradScaler`, which has unscaled the gradients before clipping
        self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scaler is not None:
            self.scaler.update()
        if self.average is not None:
            self.average.step(update)

    def variants(self) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        """Yield the names under which weights are saved, and what gives the model these weights meanwhile."""
        yield RAW, nullcontext()
        if self.average is not None:
            yield EMA, self.average.in_place()

    def snapshot(self, keep: bool) -> Callable[[Path], None]:
        """Copy everything that a checkpoint holds; every rank calls this.

        Args:
            keep: Whether this rank writes the checkpoint; others get nothing to write.

        Returns:
            A function that writes the copies into a folder.
        """
        weights = {}
        for name, values in self.variants():
            with values:
                weights[name] = weights_of(self.model, keep)
        optimizer = optimizer_state_of(self.model, self.optimizer)
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        projections = {} if self.projections is None else weights_of(self.projections, keep)

        def write(folder: Path) -> None:
            for name, tensors in weights.items():
                save_model_folder(self.model, folder / name, self.processor, tensors)
            # torch's own writer hides that a disk is full
            with (folder / OPTIMIZER).open("wb") as file:
                torch.save({"optimizer": optimizer, "scaler": scaler, "projections": projections}, file)

        return write

    def load(self, folder: Path) -> None:
        """Read everything from the folder of a checkpoint.

        Raises:
            SViTError: If these are the weights of another model, or with the projections for another teacher.
        """
        if self.average is not None and (folder / EMA).is_dir():
            load_weights(self.model, folder / EMA)
            self.average.start_here()
        load_weights(self.model, folder / RAW)
        if self.average is not None and not (folder / EMA).is_dir():
            self.average.start_here()
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        self._load_projections(state.get("projections", {}), folder)
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _load_projections(self, saved: dict[str, torch.Tensor], folder: Path) -> None:
        present = {} if self.projections is None else self.projections.state_dict()
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (saved, present)]
        if shapes[0] != shapes[1]:
            raise SViTError(
                f"the checkpoint {str(folder)!r} has {_in_words(shapes[0])} for the features of a teacher, and this "
                f"run {_in_words(shapes[1])}: its optimizer cannot go on. Start another run from its weights: "
                f"`model.name_or_path={folder / RAW}`."
            )
        if self.projections is not None:
            self.projections.load_state_dict(saved)


class WeightAverage:
    """Exponential moving average (EMA) of parameters and buffers; integer buffers are copied.

    A list of tensors and no second model: what is done with the average, evaluating or saving, is done with the model
    itself while the values are exchanged. Under FSDP each rank averages its own shards.

    `torch.optim.swa_utils.AveragedModel` averages in the same way, but moves a counter to the device at every update,
    for which the host waits. After an update that was skipped, the average still takes its step towards the weights.

    Args:
        model: The model; the average starts at its values.
        decay: Decay per update.
        warmup: Let the decay grow from 0.1, as `(1 + u) / (10 + u)` at update `u`, where that is less.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False):
        self.decay = decay
        self.warmup = warmup
        self._model = model
        self._averages = [tensor.clone() for tensor in _tensors(model)]

    def decay_at(self, update: int) -> float:
        """Return the decay of an update, from 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def step(self, update: int) -> None:
        """Move towards the values of the model after update `update`."""
        pairs = list(zip(self._averages, _tensors(self._model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, values = [average for average, _ in floats], [value for _, value in floats]
        torch._foreach_lerp_(averages, values, 1 - self.decay_at(update))
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @torch.no_grad()
    def start_here(self) -> None:
        """Start anew, at the present values of the model."""
        for average, value in zip(self._averages, _tensors(self._model), strict=True):
            average.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averages, and its own values back at the end."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, value in zip(self._averages, _tensors(self._model), strict=True):
            own = value.clone()
            value.copy_(average)
            average.copy_(own)


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    matrices = [f"{shape[1]} to {shape[0]} channels" for shape in shapes.values() if len(shape) > 1]
    return f"projections from {' and from '.join(matrices)}" if matrices else "no projections"


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
    yield from model.buffers()


def save_model_folder(
    model: nn.Module, folder: Path, processor: BaseImageProcessor, weights: dict[str, torch.Tensor]
) -> None:
    """Save whole weights, on the CPU, with what belongs to them; of foreign models the weights alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PreTrainedModel):
        # an empty one of the class: what trains may be divided among ranks, and is of another class then
        with torch.device("meta"):
            empty: Any = class_of(model)(model.config)
        empty.save_pretrained(folder, state_dict=weights)
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    processor.save_pretrained(folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put saved weights and buffers into a model of the same architecture; every name has to be there.

    Raises:
        SViTError: If the weights are those of another model.
    """
    try:
        if is_sharded(model):
            load_weights_into_shards(model, folder / WEIGHTS)
        else:
            # all names are in the file, also those of weights that a model has under two
            model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise SViTError(f"{str(folder / WEIGHTS)!r} does not belong to this model: {error}") from error


@contextmanager
def as_others_load_it(model: nn.Module) -> Iterator[None]:
    """Have the weights in the memory layout in which files are read, so that others get the same bits from them."""
    if not isinstance(model, SViTPreTrainedModel) or is_sharded(model):
        yield
        return
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-arg]
    try:
        yield
    finally:
        model.to(memory_format=LAYOUT)  # type: ignore[call-arg]
