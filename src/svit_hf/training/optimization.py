# SPDX-License-Identifier: Apache-2.0
"""The loss, the optimizer, its parameter groups, and the learning rate as a function of the update."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.modeling_svit import SViTLayerScale, SViTPreTrainedModel
from svit_hf.training.options import OptimizationOptions


# logits (B, num_labels) and targets, (B,) indices or (B, num_labels) probabilities, to a mean over the images
LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def learning_rate(options: OptimizationOptions, update: int, updates_per_epoch: int) -> float:
    """Return the learning rate of an update: linear warm-up, then the schedule.

    A closed form of the update's index: there is no state that could go out of step, and since an update has the same
    images on any number of ranks, the curve is the same.

    Args:
        options: Peak, schedule and ends.
        update: Index of the update, from 0.
        updates_per_epoch: Updates of an epoch.

    Source: `CosineLRScheduler` of timm as called by `main.py` in hhb072/STViT@c9ed9a4.
    Differs from it in: steps per update and not per epoch; the cosine begins after the warm-up, not below it.
    """
    warmup, total = options.warmup_epochs * updates_per_epoch, options.epochs * updates_per_epoch
    peak = options.peak_learning_rate
    if update < warmup:
        return options.warmup_learning_rate + (peak - options.warmup_learning_rate) * update / warmup
    if options.schedule == "constant":
        return peak
    progress = (update - warmup) / (total - warmup)
    left = 1 - progress if options.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return options.final_learning_rate + (peak - options.final_learning_rate) * left


def make_optimizer(model: nn.Module, options: OptimizationOptions) -> torch.optim.AdamW:
    """Return AdamW over the parameters that train.

    The fused kernel is not only for speed: it takes `found_inf`, a tensor by which an update is skipped on the device,
    without the host waiting for it.

    Raises:
        SViTError: If no parameter trains, or layer decay is asked of a model that is no SViT.
    """
    return torch.optim.AdamW(
        parameter_groups(model, options),
        lr=options.peak_learning_rate,
        betas=options.betas,
        eps=options.epsilon,
        fused=True,
    )


def parameter_groups(model: nn.Module, options: OptimizationOptions) -> list[dict[str, Any]]:
    """Divide the parameters that train by weight decay and by layer.

    Parameters with one dimension (biases, norms) do not decay; layer scales do where `decay_layer_scale` says so, as
    in the official code, where their shape is `(1, C, 1, 1)`. With layer decay, the learning rate of layer `i` of `n`
    is `layer_decay ** (n - i)` of that of the classifier or the head; `lr_scale` holds the factor.

    Returns:
        Groups for an optimizer, with the keys `params`, `names`, `weight_decay` and `lr_scale`.

    Raises:
        SViTError: If no parameter trains, or layer decay is asked of a model that is no SViT.
    """
    scales = {f"{name}.scale" for name, module in model.named_modules() if isinstance(module, SViTLayerScale)}
    # the model itself, or the backbone of a head
    prefix, config = next(
        ((name, module.config) for name, module in model.named_modules() if isinstance(module, SViTPreTrainedModel)),
        ("", None),
    )
    if options.layer_decay < 1 and config is None:
        raise SViTError(
            f"`optimization.layer_decay` is {options.layer_decay}, but the layers of a {type(model).__name__} are not "
            "known; it has to be 1."
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = options.decay_layer_scale if name in scales else parameter.ndim > 1
        weight_decay = options.weight_decay if decays else 0.0
        lr_scale = 1.0
        if options.layer_decay < 1:
            assert config is not None
            layer = layer_of(name, config) if name.startswith(prefix) else num_layers(config) - 1
            lr_scale = options.layer_decay ** (num_layers(config) - 1 - layer)
        group = groups.setdefault(
            (lr_scale, weight_decay),
            {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": lr_scale},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise SViTError("no parameter of the model trains; there is nothing to optimise.")
    return list(groups.values())


def num_layers(config: SViTConfig) -> int:
    """Return how many layers `layer_of` tells apart: the stem, every layer of every stage, and the head."""
    return sum(config.depths) + 2


def layer_of(name: str, config: SViTConfig) -> int:
    """Return the layer of a parameter: 0 for the stem, then 1, 2, ... through all stages, the head last.

    The convolution between two stages belongs to the first layer after it; pooler and classifier are the head.
    """
    if ".embeddings." in f".{name}":
        return 0
    match = re.search(r"stages\.(\d+)\.(?:layers\.(\d+)|downsampling)\.", name)
    if match is None:
        return num_layers(config) - 1
    stage, layer = int(match[1]), int(match[2] or 0)
    return 1 + sum(config.depths[:stage]) + layer


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]


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
