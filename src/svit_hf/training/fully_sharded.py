# SPDX-License-Identifier: Apache-2.0
"""FSDP2: weights, gradients, optimizer and average divided among ranks, and whole where they are evaluated or saved.

PyTorch's own `fully_shard` and not Accelerate's plugin: that one has a single precision policy for all modules, and
under a bf16 policy batch norms fail, whose statistics stay float32. fp32, and bf16 by autocast, work.

Whatever makes something whole is a meeting of all ranks: every rank has to call it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from svit_hf.model.modeling_svit import SViTLayer


# the state dicts of `torch.distributed.checkpoint`, whole, on the CPU of rank 0
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: nn.Module) -> None:
    """Divide a model among the ranks, in place, layer by layer."""
    # made whole again by every use: values that are exchanged in between (the average's) would not be seen otherwise
    for layer in (module for module in model.modules() if isinstance(module, SViTLayer)):
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is divided."""
    return isinstance(model, FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """Return the class of a model before it was divided, which gives it another one."""
    classes: Iterator[type[nn.Module]] = (kind for kind in type(model).__mro__ if issubclass(kind, nn.Module))
    return next(kind for kind in classes if not issubclass(kind, FSDPModule))


@contextmanager
def accumulating(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Keep gradients of the backward passes inside to the rank."""
    if not isinstance(model, FSDPModule):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Have the whole model on every rank, so that ranks may run it different numbers of times, without gradients.

    A model that is not divided stays as it is.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def weights_of(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Return copies of weights and buffers, whole, on the CPU.

    Args:
        model: The model, divided or not.
        keep: Whether this rank wants them; others get nothing.
    """
    if is_sharded(model):
        # not all of them are copies: buffers are not divided
        gathered: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
        return {name: value.clone() for name, value in gathered.items()} if keep else {}
    return {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()} if keep else {}


def load_weights_into_shards(model: nn.Module, file: Path) -> None:
    """Give a divided model weights and buffers of a safetensors file, which every rank reads; names have to fit."""
    set_model_state_dict(model, dict(load_file(file)), options=StateDictOptions(full_state_dict=True, strict=True))


def optimizer_state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer, whole: by number of the parameter, or by its name if the model is divided."""
    if is_sharded(model):
        return get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return optimizer.state_dict()


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state that `optimizer_state_of` returned."""
    if is_sharded(model):
        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(state)
