# SPDX-License-Identifier: Apache-2.0
"""What a model says of batches, on one of the processes that share an evaluation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class EvaluationInterruptedError(Exception):
    """End of an evaluation on all processes because `should_stop` of one said so."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share an evaluation.

    Attributes:
        device: Where the model of this one is.
        autocast_dtype: Precision of the forward pass; that of the model if `None`.
        reduce: Adds up a float64 tensor over all processes, and gives everybody the sum.
        gather: Gives everybody what each process has, in their order.
        should_stop: Asked before each batch, about this process. If it says yes anywhere, nobody gets a report.
    """

    device: torch.device | str = "cpu"
    autocast_dtype: torch.dtype | None = None
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    should_stop: Callable[[], bool] = lambda: False


def outputs_of(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    ranks: Ranks,
    *,
    flip: bool = False,
    forward: Callable[[torch.Tensor], Any] | None = None,
) -> Iterator[tuple[Mapping[str, Any], list[Any] | None]]:
    """Yield each batch with what a model says of its images, and with `flip` of their mirror images.

    A batch without images has none. With `None`, before which `should_stop` said yes, it ends. A model wrapped in
    `DistributedDataParallel`, whose forward exchanges buffers, is unwrapped: processes may have different numbers of
    batches. What is called is `forward` if it is given, with the same result.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    device = torch.device(ranks.device)
    for batch in batches:
        if ranks.should_stop():
            yield {}, None
            return
        if not len(batch["pixel_values"]):
            yield batch, []
            continue
        pixel_values = batch["pixel_values"].to(device, non_blocking=True)
        views = [pixel_values, pixel_values.flip(-1)] if flip else [pixel_values]
        yield batch, [compute(forward or model, view, ranks.autocast_dtype) for view in views]


def compute(forward: Callable[[torch.Tensor], Any], pixel_values: torch.Tensor, dtype: torch.dtype | None) -> Any:
    """Return what a model says of pixel values on its device, in a precision; that of the model if it is `None`."""
    with torch.autocast(pixel_values.device.type, dtype=dtype, enabled=dtype is not None):
        return forward(pixel_values)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode, and every module in its own mode again afterwards."""
    # one by one: frozen batch norms are in eval mode inside a model that trains
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
