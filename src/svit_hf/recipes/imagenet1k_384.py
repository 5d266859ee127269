# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on ImageNet-1k at 384 pixels, as the official code really does it: in evaluation mode.

Source: README and `main.py` of hhb072/STViT@c9ed9a4. There, `set_training_mode` is false whenever `--finetune` is
given: batch norms stay on their running statistics, and drop path is off although the README passes a rate.
"""

from dataclasses import replace

from svit_hf.recipes.imagenet1k_224 import imagenet_small_224
from svit_hf.training.options import ModelOptions, TrainingRecipe


def imagenet_small_384() -> TrainingRecipe:
    """Fine-tune SViT-S from its weights at 224 pixels: 30 epochs at a constant learning rate of 5e-6.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe imagenet_small_384 --output-dir runs/small_384 \
            --model.name-or-path svit-small-224

    Expectation:
        85.0 % top-1, published. Not measured here.
    """
    return _at_384("small")


def imagenet_base_384() -> TrainingRecipe:
    """Fine-tune SViT-B from its weights at 224 pixels, like SViT-S.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe imagenet_base_384 --output-dir runs/base_384 \
            --model.name-or-path svit-base-224

    Expectation:
        86.0 % top-1, published. Not measured here.
    """
    return _at_384("base")


def imagenet_large_384() -> TrainingRecipe:
    """Fine-tune SViT-L from its weights at 224 pixels, like SViT-S.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe imagenet_large_384 --output-dir runs/large_384 \
            --model.name-or-path svit-large-224

    Expectation:
        86.4 % top-1, published. Not measured here.
    """
    return _at_384("large")


def _at_384(layout: str) -> TrainingRecipe:
    recipe = imagenet_small_224()
    return replace(
        recipe,
        name=f"imagenet_{layout}_384",
        model=ModelOptions(name_or_path=f"svit-{layout}-224", image_size=384, eval_mode=True),
        optimization=replace(
            recipe.optimization,
            epochs=30,
            batch_size=512,
            device_batch_size=64,
            learning_rate=5e-6,
            base_batch_size=0,
            schedule="constant",
            warmup_epochs=0,
            weight_decay=1e-8,
        ),
    )
