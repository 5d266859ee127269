# SPDX-License-Identifier: Apache-2.0
"""Losses of logits against class indices, soft targets, and another model."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.training.config import DistillationOptions, OptimizationOptions


# logits (B, num_labels) and targets, (B,) indices or (B, num_labels) probabilities, to a mean over the images
Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_criterion(options: OptimizationOptions) -> Criterion:
    """Return the loss of a recipe: of logits `(B, num_labels)` and targets `(B,)` or `(B, num_labels)`.

    Smoothing spreads a share of every target evenly over all classes, whether it is an index or already soft: mixed
    and then smoothed is the same as smoothed and then mixed, since both are linear.
    """
    if options.loss == "binary_cross_entropy":
        return lambda logits, targets: _binary_cross_entropy(logits, targets, options.label_smoothing)
    return lambda logits, targets: F.cross_entropy(logits.float(), targets, label_smoothing=options.label_smoothing)


def _binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Sum over the classes and average over the images, so that the gradient does not shrink with many classes."""
    num_labels = logits.shape[-1]
    if not targets.is_floating_point():
        targets = F.one_hot(targets, num_labels)
    targets = targets.float() * (1 - smoothing) + smoothing / num_labels
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(dim=-1).mean()


class Teacher:
    """Answer what a trained model says about images that were prepared for the student.

    Args:
        model: Maps `pixel_values` to an output with `logits`; never trained.
        options: Kind, weight and temperature.
        scale: Factor of the student's pixel values, `(3,)`, that with `shift` gives the teacher's normalisation.
        shift: See `scale`.
    """

    def __init__(
        self,
        model: nn.Module,
        options: DistillationOptions,
        scale: torch.Tensor | float = 1.0,
        shift: torch.Tensor | float = 0.0,
    ):
        self.model = model.eval().requires_grad_(False)
        self.options = options
        self.scale, self.shift = (
            value.view(-1, 1, 1) if isinstance(value, torch.Tensor) else value for value in (scale, shift)
        )

    @torch.no_grad()
    def answer(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the teacher's logits, `(B, num_labels)`, for what the student sees, `(B, 3, H, W)`."""
        logits: torch.Tensor = self.model(pixel_values=pixel_values * self.scale + self.shift).logits
        return logits.float()

    def mix(self, label_loss: torch.Tensor, logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Mix the loss against the labels, a scalar, with the one against the teacher's answers.

        Soft: the Kullback-Leibler divergence of softened probabilities, times the temperature squared, which keeps
        gradients as large as without softening. Hard: cross entropy against the teacher's first choice.

        Source: Hinton et al., arXiv 1503.02531, section 2 (soft); Touvron et al., arXiv 2012.12877, section 4 (hard).
        """
        if self.options.kind == "hard":
            teacher_loss = F.cross_entropy(logits.float(), answers.argmax(dim=-1))
        else:
            temperature = self.options.temperature
            teacher_loss = temperature**2 * F.kl_div(
                F.log_softmax(logits.float() / temperature, dim=-1),
                F.log_softmax(answers / temperature, dim=-1),
                reduction="batchmean",
                log_target=True,
            )
        return (1 - self.options.weight) * label_loss + self.options.weight * teacher_loss
