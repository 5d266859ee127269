# SPDX-License-Identifier: Apache-2.0
"""What ranks tell each other once per update, in one message: running statistics, the loss, and who wants to stop.

Every rank reads the same sums, and so all of them skip, save and stop at the same update, and hold the same batch norm
statistics whenever something is saved or evaluated.
"""

from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Signals(NamedTuple):
    """Numbers of one update: of one rank, or their sums over ranks.

    Attributes:
        loss: Sum of the losses of the images.
        num_images: Images that were trained on.
        num_bad_images: Images that could not be read.
        gradient_norm: Norm of the gradient.
        wants_stop: Whether the rank was told to stop.
        wants_save: Whether it is time for a checkpoint.
    """

    loss: float
    num_images: float
    num_bad_images: float
    gradient_norm: float
    wants_stop: float
    wants_save: float

    @property
    def is_finite(self) -> bool:
        """Whether the update was made; otherwise some rank's loss, gradient or statistics were not finite."""
        return self.loss == self.loss


class Agreement:
    """Averages of running statistics over the micro-batches of an update, and sums of signals, in one all-reduce.

    Every micro-batch starts from the same running statistics, those of the update before, and the next ones are the
    mean of where all of them arrive: an update moves the statistics once, in whatever order and on however many ranks
    its micro-batches are computed.

    The statistics of a norm that is frozen, or of a model in eval mode, stay as they are: an average of equal numbers
    may differ from them in the last bit.

    Args:
        model: The unwrapped model, in the mode in which it trains.
        device: Where it is.
        micro_batches: Micro-batches of an update, over all ranks.
    """

    def __init__(self, model: nn.Module, device: torch.device, micro_batches: int):
        modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        norms: list[_BatchNorm] = [norm for norm in modules if norm.training]
        self.statistics = [
            buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None
        ]
        self.counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        self.device = device
        self.micro_batches = micro_batches
        self.world_size = distributed.get_world_size() if distributed.is_initialized() else 1
        self._before = self._flat_statistics()
        self._arrived = torch.zeros_like(self._before)
        self._num_arrived = 0

    def start_micro_batch(self) -> None:
        """Have the running statistics of before the update; to be called before each forward pass."""
        if self._num_arrived:
            self._write_statistics(self._before)

    def end_micro_batch(self) -> torch.Tensor:
        """Note where the running statistics have arrived after a backward pass, and return them, one vector."""
        arrived = self._flat_statistics()
        self._arrived += arrived
        self._num_arrived += 1
        return arrived

    @torch.no_grad()
    def exchange(
        self,
        loss: torch.Tensor,
        gradient_norm: torch.Tensor,
        counts: tuple[float, float, float, float],
        total_statistics: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, "DelayedSignals"]:
        """Give running statistics their mean over micro-batches, and add up the signals; the host waits for nothing.

        To be called on every rank, once per update, between the backward pass and the step of the optimizer.

        Args:
            loss: Sum of the losses of this rank's images, scalar.
            gradient_norm: Norm of the gradient, scalar, the same on every rank.
            counts: The other fields of `Signals`, in order, without these two.
            total_statistics: Where the running statistics of all micro-batches have arrived, added up, if that is
                known already; `loss` is that of all ranks then, too.

        Returns:
            Whether all that any rank sent is finite, a boolean scalar on the device, and the signals. Where it is
            false, the statistics are what they were before the update.
        """
        num_images, num_bad_images, wants_stop, wants_save = counts
        host = _to_device([num_images, num_bad_images, wants_stop, wants_save], self.device)
        # what every rank has alike is sent by one, and added to zeros: no rounding
        is_first = self.world_size == 1 or distributed.get_rank() == 0
        norm, loss, statistics = gradient_norm.float(), loss.float(), self._arrived
        if total_statistics is not None:
            statistics = total_statistics
        if not is_first:
            norm = torch.zeros_like(norm)
            if total_statistics is not None:
                loss, statistics = torch.zeros_like(loss), torch.zeros_like(statistics)
        head = torch.stack([loss, host[0], host[1], norm, host[2], host[3]])
        message = torch.cat([head, statistics])
        if self.world_size > 1:
            distributed.all_reduce(message)
        is_finite = torch.isfinite(message).all()
        sums, statistics = message[: len(head)], message[len(head) :] / self.micro_batches
        # one non-finite activation would stay in the statistics for ever
        self._before = torch.where(is_finite, statistics, self._before)
        self._write_statistics(self._before)
        # each forward pass counted one; how many these were on this rank is no part of the training
        for counter in self.counters:
            counter.sub_(self._num_arrived - 1)
        self._arrived, self._num_arrived = torch.zeros_like(self._before), 0
        sums[0] = torch.where(is_finite, sums[0], torch.nan)
        return is_finite, DelayedSignals(sums)

    def _flat_statistics(self) -> torch.Tensor:
        return torch.cat([torch.empty(0, device=self.device), *(buffer.flatten() for buffer in self.statistics)])

    def _write_statistics(self, flat: torch.Tensor) -> None:
        if self.statistics:
            sizes = [buffer.numel() for buffer in self.statistics]
            torch._foreach_copy_(self.statistics, list(flat.split(sizes)))


class DelayedSignals:
    """Signals that are on their way from the device.

    Reading them right away would make the host wait for the whole update. One update later they have long arrived.
    """

    def __init__(self, sums: torch.Tensor):
        # into pinned memory, which is what makes the copy asynchronous
        self._sums = sums.to("cpu", non_blocking=True)
        self._arrival = None if sums.device.type == "cpu" else torch.Event(sums.device)
        if self._arrival is not None:
            self._arrival.record()

    def read(self) -> Signals:
        """Return the signals, and wait for them if need be."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return Signals(*self._sums.tolist())


def _to_device(values: list[float], device: torch.device) -> torch.Tensor:
    # a copy from pageable memory would make the host wait
    pinned = device.type == "cuda"
    return torch.tensor(values, pin_memory=pinned).to(device, non_blocking=pinned)
