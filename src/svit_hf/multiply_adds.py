# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a network, counted. Needs torch alone, as measuring on a machine without the rest does."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_multiply_adds(model: nn.Module, image_shape: tuple[int, int], device: torch.device) -> int:
    """Count the multiply-accumulates of one image in convolutions, linear layers and attention (MACs)."""
    was_training = model.training
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *image_shape, device=device))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
