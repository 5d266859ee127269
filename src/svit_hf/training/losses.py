# SPDX-License-Identifier: Apache-2.0
"""Losses of logits against class indices and soft targets."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from svit_hf.training.options import OptimizationOptions


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
