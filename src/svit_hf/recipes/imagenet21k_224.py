# SPDX-License-Identifier: Apache-2.0
"""Pre-training on the 21,841 classes of ImageNet-21k at 224 pixels, which nobody has published for SViT.

Source: epochs, batch, learning rate, its linear fall and weight decay are those of Liu et al., arXiv 2103.14030,
section 4.1, for a network of much the same size and cost; the rest is from `imagenet_small_224`. Numbers of images are
those that the card of timm/imagenet-22k-wds states.
"""

from dataclasses import replace

from svit_hf.data.options import AugmentationOptions, DataOptions
from svit_hf.recipes.imagenet1k_224 import imagenet_small_224
from svit_hf.training.options import TrainingRecipe


def imagenet21k_small_224() -> TrainingRecipe:
    """Train SViT-S from random weights: 90 epochs, learning rate 1e-3 at 4096 images per update.

    The model that comes out is what `imagenet_small_384` or `finetune` start from, as `--model.name-or-path`.

    Cost, computed and not measured:
        - 13,673,551 images are 3,338 updates of 4096. 90 epochs are 300,420 updates and 1.23e9 images, 3.2 times those
          of `imagenet_small_224`.
        - Forward and backward passes of 4.13 GMACs times three, two operations each, are 25 GFLOP per image and 3.0e19
          FLOP in all.
        - At an assumed 1000 images/s per GPU that is 342 hours of a GPU: 43 hours for 8 GPUs, 5.3 for 64.
        - Reading 8000 images/s of some 110 kB is 0.9 GB/s, and an epoch 1.5 TB.
        - The classifier has 22.4 M weights beside the 24.5 M of the rest: 187 MB of gradients per update instead of
          102 MB. Logits and mixed targets of 128 images take 11 MB each in fp32.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe imagenet21k_small_224 --output-dir runs/small_21k

    Expectation:
        Not measured.
    """
    small = imagenet_small_224()
    return replace(
        small,
        name="imagenet21k_small_224",
        data=DataOptions(path="timm/imagenet-22k-wds"),
        # repeated augmentation is for data that are seen three hundred times
        augmentation=AugmentationOptions(),
        optimization=replace(
            small.optimization,
            epochs=90,
            batch_size=4096,
            learning_rate=1e-3,
            base_batch_size=0,
            schedule="linear",
            weight_decay=0.01,
        ),
        # 472,840 images each time
        run=replace(small.run, evaluate_every_epochs=10),
    )
