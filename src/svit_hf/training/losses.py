# SPDX-License-Identifier: Apache-2.0
"""Losses of logits against class indices, soft targets, and another model."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.training.options import DistillationOptions, OptimizationOptions


# logits (B, num_labels) and targets, (B,) indices or (B, num_labels) probabilities, to a mean over the images
LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_criterion(options: OptimizationOptions, class_weights: torch.Tensor | None = None) -> LabelLoss:
    """Return the loss of a recipe: of logits `(B, num_labels)` and targets `(B,)` or `(B, num_labels)`.

    Smoothing spreads a share of every target evenly over all classes, whether it is an index or already soft: mixed
    and then smoothed is the same as smoothed and then mixed, since both are linear. The same holds for weights: they
    multiply the terms of the classes, and the sum is divided by the number of images, not by the sum of their weights.

    Args:
        options: Kind of loss and smoothing.
        class_weights: Factor of each class, `(num_labels,)`; all 1 by default.
    """
    is_binary, smoothing = options.loss == "binary_cross_entropy", options.label_smoothing

    def criterion(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if not targets.is_floating_point() and (is_binary or class_weights is not None):
            targets = F.one_hot(targets, logits.shape[-1]).float()
        if is_binary:
            return _binary_cross_entropy(logits, targets, smoothing, class_weights)
        return F.cross_entropy(logits, targets, class_weights, label_smoothing=smoothing)

    return criterion


def balanced_class_weights(counts: Sequence[int]) -> torch.Tensor:
    """Return weights `(num_labels,)` in inverse proportion to the images of each class, whose mean over images is 1.

    A class without images has the weight of one with a single image.
    """
    images = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    num_present = sum(count > 0 for count in counts)
    return (sum(counts) / num_present / images).float()


def _binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float, weights: torch.Tensor | None
) -> torch.Tensor:
    """Sum over the classes and average over the images, so that the gradient does not shrink with many classes."""
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none").sum(dim=-1).mean()


class Teacher:
    """A trained model that says what it sees in images that were prepared for the student.

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
