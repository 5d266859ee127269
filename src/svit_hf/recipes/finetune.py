# SPDX-License-Identifier: Apache-2.0
"""Recipes for data of one's own, from weights that are there: fine-tuning, a linear probe, distillation.

Source: common practice on small data (layer decay, little mixing, a short cosine); the values are ours. Pictures are
evaluated whole (`crop_pct=1`), without the margin of ImageNet's: what they show may reach their edges.
"""

from dataclasses import replace

from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.training.options import DistillationOptions, ModelOptions, OptimizationOptions, RunOptions, TrainingRecipe


WEIGHTS = "svit-small-224"


def finetune() -> TrainingRecipe:
    """Fine-tune all of a trained model on any images with labels, with frozen batch norms.

    Small batches make poor batch statistics, and those of the pre-training are good: the batch norms keep them.

    Command:
        svit-hf train --recipe finetune --output-dir runs/pictures \
            --model.name-or-path svit-small-224 --data.path pictures

    Expectation:
        Depends on the data; not measured.
    """
    return TrainingRecipe(
        name="finetune",
        model=ModelOptions(name_or_path=WEIGHTS, crop_pct=1.0, config={"drop_path_rate": 0.1}, freeze_batch_norm=True),
        augmentation=AugmentationOptions(scale=(0.3, 1.0), randaugment="rand-m6-mstd0.5-inc1", random_erasing=0.1),
        mixing=MixingOptions(mixup_alpha=0.2, cutmix_alpha=0.0),
        optimization=OptimizationOptions(
            epochs=20,
            batch_size=64,
            device_batch_size=64,
            learning_rate=5e-4,
            base_batch_size=0,
            warmup_epochs=1,
            final_learning_rate=1e-6,
            layer_decay=0.85,
            max_gradient_norm=5.0,
            ema_decay=0.999,
            ema_warmup=True,
        ),
        run=RunOptions(log_every_updates=10),
    )


def linear_probe() -> TrainingRecipe:
    """Train a new classifier on top of a model that stays as it is, in evaluation mode.

    Command:
        svit-hf train --recipe linear_probe --output-dir runs/probe \
            --model.name-or-path svit-small-224 --data.path pictures

    Expectation:
        Depends on the data; not measured.
    """
    recipe = finetune()
    return replace(
        recipe,
        name="linear_probe",
        model=ModelOptions(name_or_path=WEIGHTS, crop_pct=1.0, freeze_backbone=True, eval_mode=True),
        augmentation=AugmentationOptions(scale=(0.5, 1.0), randaugment="", color_jitter=0.0, random_erasing=0.0),
        mixing=MixingOptions(mixup_alpha=0.0, cutmix_alpha=0.0),
        optimization=replace(
            recipe.optimization,
            epochs=10,
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.0,
            layer_decay=1.0,
            label_smoothing=0.0,
            ema_decay=0.0,
        ),
    )


def distill() -> TrainingRecipe:
    """Train a small model from random weights on labels and on the answers of a larger one.

    The teacher is any image classifier of Transformers that knows the same classes.

    Command:
        svit-hf train --recipe distill --output-dir runs/distilled \
            --distillation.teacher runs/pictures/model --data.path pictures

    Expectation:
        Depends on teacher and data; not measured.
    """
    recipe = finetune()
    return replace(
        recipe,
        name="distill",
        model=ModelOptions(layout="small", crop_pct=1.0, config={"drop_path_rate": 0.1}),
        distillation=DistillationOptions(teacher=WEIGHTS, kind="soft", weight=0.5, temperature=2.0),
        optimization=replace(
            recipe.optimization,
            epochs=100,
            batch_size=256,
            learning_rate=5e-4,
            base_batch_size=512,
            warmup_epochs=5,
            layer_decay=1.0,
            ema_decay=0.9998,
        ),
    )
