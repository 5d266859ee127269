# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection: small recipes for data of one's own, and the settings of the field's large data sets.

Source of the large ones: sections 4.2 and 4.3 of arXiv 2211.11167. Its authors published no code for them; what the
paper leaves open is as in later work of the same group (configs of RMT, arXiv 2309.11523). Differs from it in: images
are resized to one square size, in training after a random crop.
"""

from dataclasses import replace

from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.tasks.options import AnnotationOptions, TaskOptions
from svit_hf.training.options import ModelOptions, OptimizationOptions, RunOptions, TrainingRecipe


def segment_semantic() -> TrainingRecipe:
    """Train UperNet on a small SViT from random weights, on crops, for a class of every pixel.

    Weights of an SViT are taken with `--model.name-or-path`. Masks of 0 and 255, or of numbered objects, are one class
    with `--task.annotations.is-binary True`.

    Command:
        svit-hf train --recipe segment_semantic --output-dir runs/cells --data.path cells \
            --task.labels background cell --task.annotations.is-binary true

    Expectation:
        Depends on the data; see docs/guides/segment_and_detect.md.
    """
    return TrainingRecipe(
        name="segment_semantic",
        model=ModelOptions(layout="tiny", image_size=256, config={"drop_path_rate": 0.0}),
        task=TaskOptions(name="semantic_segmentation", width=64, crop_size=128, vertical_flip=0.5),
        augmentation=AugmentationOptions(
            scale=(0.15, 0.4), interpolation="bilinear", randaugment="", color_jitter=0.0, random_erasing=0.0
        ),
        mixing=MixingOptions(mixup_alpha=0.0, cutmix_alpha=0.0),
        optimization=OptimizationOptions(
            epochs=40,
            batch_size=8,
            device_batch_size=8,
            learning_rate=2e-3,
            base_batch_size=0,
            warmup_epochs=4,
            final_learning_rate=0.0,
            label_smoothing=0.0,
            max_gradient_norm=1.0,
            ema_decay=0.99,
            ema_warmup=True,
        ),
        run=RunOptions(log_every_updates=10, evaluate_every_epochs=5),
    )


def segment_instance() -> TrainingRecipe:
    """Train Mask2Former on a small SViT from random weights, on crops, for a mask and a class of every object.

    Where objects are as large as the pictures, crops are too small for them: `--augmentation.scale 0.3 1` and
    `--task.crop-size 0` show more.

    Command:
        svit-hf train --recipe segment_instance --output-dir runs/instances --data.path cells --task.labels cell

    Expectation:
        Depends on the data; mask AP50 0.73 on nuclei, 7 minutes on one core, see docs/results_dense.md.
    """
    recipe = segment_semantic()
    return replace(
        recipe,
        name="segment_instance",
        model=replace(recipe.model, image_size=384),
        task=TaskOptions(
            name="instance_segmentation",
            width=64,
            # a sixth of the time of the published head, which has 6 and 10 layers
            head_options={"encoder_layers": 1, "decoder_layers": 4},
            crop_size=192,
            vertical_flip=0.5,
        ),
        augmentation=replace(recipe.augmentation, scale=(0.15, 0.35), color_jitter=0.4),
        optimization=replace(
            recipe.optimization, epochs=30, batch_size=4, device_batch_size=4, learning_rate=1e-3, warmup_epochs=3
        ),
    )


def detect() -> TrainingRecipe:
    """Train D-FINE on a small SViT from random weights, for a box and a class of every object.

    Pictures that have one shape keep it with `--model.image-size HEIGHT WIDTH`.

    Command:
        svit-hf train --recipe detect --output-dir runs/boxes --data.path boxes

    Expectation:
        Depends on the data; mAP 0.58 on blood cells, 34 minutes on one core, see docs/results_dense.md.
    """
    recipe = segment_semantic()
    head_options = {
        "num_queries": 100,
        "decoder_layers": 3,
        "hidden_expansion": 0.5,
        "num_denoising": 150,
        # after so few pictures several queries still find the same object
        "max_overlap": 0.7,
    }
    return replace(
        recipe,
        name="detect",
        model=replace(recipe.model, image_size=224),
        task=TaskOptions(name="detection", width=64, head_options=head_options, vertical_flip=0.5),
        # boxes are shares of the picture: objects have to be about as large and as round as in whole ones
        augmentation=replace(recipe.augmentation, scale=(0.65, 1.0), ratio=(0.85, 1.18), color_jitter=0.2),
        optimization=replace(
            recipe.optimization,
            epochs=60,
            batch_size=4,
            device_batch_size=4,
            learning_rate=8e-4,
            warmup_epochs=3,
            max_gradient_norm=0.1,
            ema_decay=0.995,
        ),
    )


def ade20k_upernet() -> TrainingRecipe:
    """Train UperNet on a pre-trained SViT-S on ADE20K: 160 thousand updates of 16 crops of 512 pixels.

    The base and the large model: `--model.name-or-path svit-base-224`, and a drop path rate of 0.3 or 0.5. The folder
    has `images/training`, `masks/training` (ADE20K calls them annotations) and the same for `validation`, and
    `classes.txt`, a name per line.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe ade20k_upernet --output-dir runs/ade20k \
            --data.path ade20k

    Expectation:
        Mean IoU of 48.6 % for the small, 50.7 % for the base and 52.4 % for the large model, published, at whole
        pictures in their own ratio. Not measured here.
    """
    recipe = segment_semantic()
    return replace(
        recipe,
        name="ade20k_upernet",
        model=ModelOptions(name_or_path="svit-small-224", image_size=512, config={"drop_path_rate": 0.15}),
        task=TaskOptions(name="semantic_segmentation", annotations=AnnotationOptions(reduce_labels=True)),
        augmentation=replace(recipe.augmentation, scale=(0.2, 1.0)),
        optimization=replace(
            recipe.optimization,
            # 160 thousand updates of 20210 pictures
            epochs=127,
            batch_size=16,
            device_batch_size=2,
            learning_rate=6e-5,
            schedule="linear",
            warmup_epochs=1.2,
            weight_decay=0.01,
            max_gradient_norm=0.0,
            ema_decay=0.0,
        ),
        run=RunOptions(evaluate_every_epochs=10),
    )


def coco_instance() -> TrainingRecipe:
    """Train Mask2Former on a pre-trained SViT-S on COCO: 12 epochs, 16 pictures of an update.

    The paper's head is Mask R-CNN, which Transformers does not have.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe coco_instance --output-dir runs/coco --data.path coco

    Expectation:
        Not measured here, and not comparable with the paper's 47.6 (boxes) and 43.1 (masks) of Mask R-CNN.
    """
    recipe = ade20k_upernet()
    return replace(
        recipe,
        name="coco_instance",
        model=replace(recipe.model, image_size=800),
        task=TaskOptions(name="instance_segmentation"),
        optimization=replace(
            recipe.optimization, epochs=12, learning_rate=1e-4, schedule="cosine", weight_decay=0.05, warmup_epochs=0.1
        ),
        run=RunOptions(evaluate_every_epochs=1),
    )


def coco_detect() -> TrainingRecipe:
    """Train D-FINE on a pre-trained SViT-S on COCO: 12 epochs, 16 pictures of 640 pixels of an update.

    Command:
        torchrun --nproc_per_node 8 -m svit_hf train --recipe coco_detect --output-dir runs/coco --data.path coco

    Expectation:
        Not measured here, and not comparable with the paper's 47.6 of Mask R-CNN.
    """
    recipe = coco_instance()
    return replace(
        recipe,
        name="coco_detect",
        model=replace(recipe.model, image_size=640),
        task=TaskOptions(name="detection", annotations=AnnotationOptions(clip_boxes=True)),
        optimization=replace(recipe.optimization, max_gradient_norm=0.1),
    )
