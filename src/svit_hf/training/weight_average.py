# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of a model's weights and buffers (EMA)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """Average parameters and buffers over updates; integer buffers are copied.

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


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        yield parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
    yield from model.buffers()
