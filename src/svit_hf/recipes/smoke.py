# SPDX-License-Identifier: Apache-2.0
"""The smallest recipe: to see that an installation, a machine or a cluster trains."""

from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.training.options import ModelOptions, OptimizationOptions, RunOptions, TrainingRecipe


def smoke() -> TrainingRecipe:
    """Train a tiny SViT of 0.35 M parameters for three epochs at 32 pixels.

    It needs no torchvision: images are cropped and flipped, and neither recoloured nor mixed.

    Command:
        svit-hf train --recipe smoke --output-dir runs/smoke --data.path pictures

    Expectation:
        Less than two minutes on a laptop's CPU with 2000 images or fewer; the accuracy is beside the point.
    """
    return TrainingRecipe(
        name="smoke",
        model=ModelOptions(
            image_size=32,
            config={
                "hidden_sizes": [16, 32, 64, 96],
                "depths": [1, 1, 2, 1],
                "num_attention_heads": [1, 2, 4, 6],
                "super_token_sizes": [2, 2, 1, 1],
                "projection_dim": 256,
                "drop_path_rate": 0.05,
            },
        ),
        augmentation=AugmentationOptions(scale=(0.5, 1.0), randaugment="", color_jitter=0.0, random_erasing=0.0),
        mixing=MixingOptions(mixup_alpha=0.0, cutmix_alpha=0.0),
        optimization=OptimizationOptions(
            epochs=3,
            batch_size=64,
            device_batch_size=64,
            learning_rate=2e-3,
            base_batch_size=0,
            warmup_epochs=1,
            ema_decay=0.99,
            ema_warmup=True,
        ),
        run=RunOptions(log_every_updates=10),
    )
