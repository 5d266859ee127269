# SPDX-License-Identifier: Apache-2.0
"""What training changes, weights, optimizer and moving average, and how it gets into a checkpoint and out again."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTPreTrainedModel
from svit_hf.training.checkpointing import EMA, OPTIMIZER, RAW
from svit_hf.training.fully_sharded import is_sharded, load_optimizer_state, optimizer_state_of, weights_of
from svit_hf.training.starting_model import load_weights, save_model_folder
from svit_hf.training.weight_average import WeightAverage


# that of the activations of SViT; in another one, DDP would have to copy every gradient
LAYOUT = torch.channels_last


@dataclass(frozen=True)
class Snapshot:
    """Hold copies of what training changes, of one update.

    Attributes:
        model: The model, for what is not weights: class, config, names.
        processor: Image processor that is saved beside the weights.
        weights: Weights and buffers, by the name of the folder that they go into.
        states: Of optimizer and loss scale.
    """

    model: nn.Module
    processor: SViTImageProcessorPil
    weights: Mapping[str, dict[str, torch.Tensor]]
    states: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write everything into the folder of a checkpoint."""
        for name, weights in self.weights.items():
            save_model_folder(self.model, folder / name, self.processor, weights)
        # torch's own writer hides that a disk is full
        with (folder / OPTIMIZER).open("wb") as file:
            torch.save(dict(self.states), file)


@dataclass
class TrainedWeights:
    """Hold what training changes.

    Attributes:
        model: The model, unwrapped.
        optimizer: AdamW, fused.
        average: Moving average of the model, if there is one.
        scaler: Scaler of the loss under fp16.
        processor: Image processor that is saved beside the weights.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    scaler: GradScaler | None
    processor: SViTImageProcessorPil

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

    def snapshot(self, keep: bool) -> "Snapshot | None":
        """Copy everything that a checkpoint holds; every rank calls this.

        Args:
            keep: Whether this rank writes the checkpoint; others get nothing.
        """
        weights = {}
        for name, values in self.variants():
            with values:
                weights[name] = weights_of(self.model, keep)
        if not (keep or is_sharded(self.model)):
            return None
        optimizer = optimizer_state_of(self.model, self.optimizer)
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        return Snapshot(self.model, self.processor, weights, {"optimizer": optimizer, "scaler": scaler})

    def load(self, folder: Path) -> None:
        """Read everything from the folder of a checkpoint.

        Raises:
            SViTError: If these are the weights of another model.
        """
        if self.average is not None and (folder / EMA).is_dir():
            load_weights(self.model, folder / EMA)
            self.average.start_here()
        load_weights(self.model, folder / RAW)
        if self.average is not None and not (folder / EMA).is_dir():
            self.average.start_here()
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


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
