# SPDX-License-Identifier: Apache-2.0
"""What one call of a contestant does: an inference step, a training step, or a function of tensors.

Each has `outputs`, which does the work once, changes no weight, and returns what has to be right by name, and
`state_bytes`, the bytes that stay between two calls.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.comparison import state_bytes
from svit_hf.benchmark.forms import logits_of
from svit_hf.benchmark.memory import bytes_of
from svit_hf.convert.key_mapping import to_ours


LEARNING_RATE = 1e-5


@dataclass
class InferenceStep:
    """Forward pass of a classifier in inference mode."""

    module: nn.Module
    pixel_values: torch.Tensor
    autocast_dtype: torch.dtype | None = None

    def __call__(self) -> torch.Tensor:
        """Return the logits."""
        with torch.inference_mode(), autocast(self.pixel_values.device, self.autocast_dtype):
            return logits_of(self.module(self.pixel_values))

    def outputs(self) -> dict[str, torch.Tensor]:
        """Return the logits by name."""
        return {"logits": self().float()}

    def state_bytes(self) -> int:
        """Return the bytes of weights and statistics, or of an exported program."""
        return state_bytes(self.module)


@dataclass
class TrainingStep:
    """Forward and backward pass of a classifier, and AdamW on its float32 weights; float16 scales the loss, too."""

    module: nn.Module
    pixel_values: torch.Tensor
    labels: torch.Tensor
    autocast_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE, fused=True)
        device, is_half = self.pixel_values.device.type, self.autocast_dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device, enabled=is_half)

    def __call__(self) -> None:
        """Take one step."""
        self.forward_and_backward(self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # here and not at the beginning of the next step: gradients are memory that the step needs
        self.optimizer.zero_grad()

    def outputs(self) -> dict[str, torch.Tensor]:
        """Return logits and all gradients, one behind the other in the order of our names.

        The statistics of the batch norms move, as in any forward pass in training mode; nothing here depends on them.
        """
        logits = self.forward_and_backward(torch.amp.GradScaler(self.pixel_values.device.type, enabled=False))
        gradients = {}
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                gradients[to_ours(name) or name] = parameter.grad.detach().flatten().float()
        self.optimizer.zero_grad()
        return {"logits": logits, "gradients": torch.cat([gradients[name] for name in sorted(gradients)])}

    def state_bytes(self) -> int:
        """Return the bytes of weights, statistics and the moments of AdamW."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return state_bytes(self.module) + bytes_of(value for value in moments if isinstance(value, torch.Tensor))

    def forward_and_backward(self, scaler: torch.amp.GradScaler) -> torch.Tensor:
        """Return logits, with the gradients in the weights."""
        with autocast(self.pixel_values.device, self.autocast_dtype):
            logits = logits_of(self.module(self.pixel_values)).float()
            loss = F.cross_entropy(logits, self.labels)
        scaler.scale(loss).backward()
        return logits.detach()


class FunctionStep:
    """Function of tensors, forward, or forward and backward with respect to all of them."""

    def __init__(
        self, function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], does_backward: bool = False
    ):
        self.function = function
        self.inputs = [tensor.detach().requires_grad_(does_backward) for tensor in inputs]
        self.does_backward = does_backward
        self.gradient: torch.Tensor | None = None

    def __call__(self) -> tuple[torch.Tensor, ...]:
        """Return the result, and the gradients if there are any."""
        if not self.does_backward:
            with torch.inference_mode():
                return (self.function(*self.inputs),)
        result = self.function(*self.inputs)
        if self.gradient is None:
            # any gradient will do that is not the same everywhere; the result itself is at hand
            self.gradient = result.detach().clone()
        return result.detach(), *torch.autograd.grad(result, self.inputs, self.gradient)

    def outputs(self) -> dict[str, torch.Tensor]:
        """Return the result and the gradients by name, one behind the other."""
        result, *gradients = self()
        outputs = {"results": result.float()}
        if gradients:
            outputs["gradients"] = torch.cat([gradient.flatten().float() for gradient in gradients])
        return outputs

    def state_bytes(self) -> int:
        """Return the bytes of the inputs."""
        return bytes_of(self.inputs)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context that computes in `dtype`, or changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


Workload = InferenceStep | TrainingStep | FunctionStep
