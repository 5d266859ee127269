# SPDX-License-Identifier: Apache-2.0
"""Recipes: functions that return a `TrainingRecipe`, each with its source, its command and what to expect of it.

To add one, write the function and name it in `RECIPES`.
"""

from collections.abc import Callable

from svit_hf.recipes.dense import (
    ade20k_upernet,
    coco_detect,
    coco_instance,
    detect,
    segment_instance,
    segment_semantic,
)
from svit_hf.recipes.finetune import distill, finetune, linear_probe
from svit_hf.recipes.imagenet import (
    imagenet21k_small_224,
    imagenet_base_224,
    imagenet_base_384,
    imagenet_large_224,
    imagenet_large_384,
    imagenet_small_224,
    imagenet_small_384,
)
from svit_hf.recipes.smoke import smoke
from svit_hf.training.options import TrainingRecipe


RECIPES: dict[str, Callable[[], TrainingRecipe]] = {
    function.__name__: function
    for function in (
        imagenet_small_224,
        imagenet_base_224,
        imagenet_large_224,
        imagenet_small_384,
        imagenet_base_384,
        imagenet_large_384,
        imagenet21k_small_224,
        finetune,
        linear_probe,
        distill,
        smoke,
        segment_semantic,
        segment_instance,
        detect,
        ade20k_upernet,
        coco_instance,
        coco_detect,
    )
}
