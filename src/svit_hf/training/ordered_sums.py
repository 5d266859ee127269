# SPDX-License-Identifier: Apache-2.0
"""Sums over the micro-batches of an update that have the same bits however many ranks divide them.

Floating-point sums depend on their order, and an all-reduce has one of its own for each number of ranks. Here every
micro-batch keeps its vector, and these are added one after the other. Each rank does so for a part of the elements: it
receives that part of all vectors, and sends its sums to everybody.

With `M` micro-batches, `R` ranks and `V` elements, a rank keeps `M / R` vectors and sends `(M / R) * V * (R - 1) / R`
elements for the sums and `V * (R - 1) / R` for the results, where a ring all-reduce sends `2 * V * (R - 1) / R`.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import distributed, nn


class OrderedSums:
    """Loss, gradients and running statistics of an update, added up in the order of its micro-batches.

    Args:
        parameters: The trained parameters.
        micro_batches: Micro-batches of an update, over all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], micro_batches: int):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.micro_batches = micro_batches
        self.vectors: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, statistics: torch.Tensor) -> None:
        """Take the gradients of this rank's next micro-batch, and leave none behind.

        Args:
            loss: Sum of its losses, scalar.
            statistics: Running statistics after it, one vector.
        """
        gradients = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in self.parameters
        ]
        self.vectors.append(torch.cat([loss.detach().float().reshape(1), statistics, *gradients]))
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self, num_statistics: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give every parameter the mean of its gradients over all micro-batches, on every rank.

        Args:
            num_statistics: Length of the vector of statistics.

        Returns:
            The sum of the losses, scalar, and that of the statistics.
        """
        total = sum_in_order(self.vectors)
        self.vectors = []
        sizes = [1, num_statistics, *(parameter.numel() for parameter in self.parameters)]
        loss, statistics, *gradients = total.split(sizes)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            mean = (gradient / self.micro_batches).view(parameter.shape)
            # in the memory format of the parameter, which fused optimizers want
            parameter.grad = torch.empty_like(parameter).copy_(mean)
        return loss[0], statistics


def sum_in_order(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add vectors of all ranks, those of rank 0 first, each rank's in their order; every rank gets the same sum.

    Args:
        vectors: Those of this rank, as many as on any other, `(V,)` each.
    """
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    if world_size == 1:
        return _add_up(vectors)
    mine = torch.stack(list(vectors))  # (M / R, V)
    num_elements = mine.shape[1]
    width = -(-num_elements // world_size)
    mine = nn.functional.pad(mine, (0, width * world_size - num_elements))
    received: list[torch.Tensor] = []
    for rank in range(world_size):
        part = mine[:, rank * width : (rank + 1) * width].contiguous()
        is_here = distributed.get_rank() == rank
        parts = [torch.empty_like(part) for _ in range(world_size)] if is_here else None
        # gloo has no all-to-all; a gather to each rank in turn sends as much
        distributed.gather(part, parts, dst=rank)
        if parts is not None:
            received = parts
    sums = _add_up([vector for part in received for vector in part])
    everywhere = [torch.empty_like(sums) for _ in range(world_size)]
    distributed.all_gather(everywhere, sums)
    return torch.cat(everywhere)[:num_elements]


def _add_up(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    return total
