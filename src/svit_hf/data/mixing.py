# SPDX-License-Identifier: Apache-2.0
"""Mixup and cutmix: each image of a batch gets a part of its neighbour, and so does its target."""

import torch
from torch.nn import functional as F

from svit_hf.data.augmentation import require_torchvision
from svit_hf.data.options import MixingOptions
from svit_hf.data.seeding import seeded_by


def mix_batch(
    pixel_values: torch.Tensor, labels: torch.Tensor, options: MixingOptions, num_classes: int, seed: int, update: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the images of a batch in pairs.

    All randomness follows from `seed` and `update`: ranks that shall not mix alike give different seeds.

    Args:
        pixel_values: `(B, 3, H, W)`, on any device.
        labels: Numbers of the classes, `(B,)`, int64, or targets `(B, num_classes)`, float32.
        options: How to mix.
        num_classes: Number of classes.
        seed: Seed of the run and the rank.
        update: Number of the update.

    Returns:
        Mixed images, a new tensor unless mixing is off, and targets `(B, num_classes)`, float32, whose rows sum to 1
        if each image has one class.

    Raises:
        SViTError: If there is something to mix, and torchvision is not installed.

    Source: mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) by torchvision. Differs from timm's `Mixup`, which
    the official training uses, in: an image is mixed with the one before it instead of the one at the mirrored place,
    and label smoothing is left to the loss.
    """
    if not options.is_on:
        return pixel_values, labels if labels.ndim == 2 else F.one_hot(labels, num_classes).float()
    require_torchvision("mixup_alpha", options.mixup_alpha, 0)
    from torchvision.transforms import v2

    with seeded_by(seed, update):
        prefers_cutmix = bool(torch.rand(()) < options.switch_probability)
        if options.cutmix_alpha and (prefers_cutmix or not options.mixup_alpha):
            mix = v2.CutMix(alpha=options.cutmix_alpha, num_classes=num_classes)
        else:
            mix = v2.MixUp(alpha=options.mixup_alpha, num_classes=num_classes)
        mixed: tuple[torch.Tensor, torch.Tensor] = mix(pixel_values, labels)
    return mixed
