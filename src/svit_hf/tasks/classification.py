# SPDX-License-Identifier: Apache-2.0
"""Classification: one class, or any number of labels, for every image.

Data are what `svit_hf.data.opening` opens, in passing or indexed. The other tasks read their own columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from svit_hf.data.augmentation import TrainingTransform, mix_batch
from svit_hf.data.loading import Batch, EvaluationLoader
from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.data.sharding import SampleKey
from svit_hf.data.sources import ImageSource
from svit_hf.evaluation.model_evaluation import measure_classifier
from svit_hf.evaluation.multi_label import MultiLabelReport
from svit_hf.evaluation.outputs import Ranks
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.evaluation.report import ClassificationReport
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.tasks.task import Task


# the model's output, targets, (B,) or (B, num_labels), and pixel values (B, 3, H, W), to a mean over the images
Criterion = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Classification(Task):
    """One class, or any number of labels, for every image; `image_size` is that of training, in pixels."""

    name = "classification"

    def __init__(
        self,
        source: ImageSource,
        processor: SViTImageProcessorPil,
        image_size: tuple[int, int],
        augmentation: AugmentationOptions,
        mixing: MixingOptions,
        criterion: Criterion,
    ):
        self.labels = list(source.label_names)
        self.processor, self.mixing, self.criterion = processor, mixing, criterion
        self.best_metric = (MultiLabelReport if source.is_multi_label else ClassificationReport).best_metric
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        self.augmented = TrainingTransform(image_size, mean, std, augmentation)
        self.prepared = Preprocessing(processor)

    def training_example(self, decoded: Image.Image, key: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32."""
        return self.augmented(decoded, key)

    def evaluation_example(self, decoded: Image.Image, key: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32."""
        return self.prepared(decoded, key)

    def loss(self, model: torch.nn.Module, batch: Batch, seed: int, update: int) -> torch.Tensor:
        """Mix the images, and judge what the model says of them."""
        pixel_values, targets = batch["pixel_values"], batch["labels"]
        if self.mixing.is_on:
            pixel_values, targets = mix_batch(pixel_values, targets, self.mixing, len(self.labels), seed, update)
        return self.criterion(model(pixel_values), targets, pixel_values)

    def measure(
        self, model: torch.nn.Module, loader: EvaluationLoader, ranks: Ranks | None = None
    ) -> ClassificationReport | MultiLabelReport:
        """Count what a model says of every image."""
        return measure_classifier(model, loader, ranks or Ranks(), len(self.labels))
