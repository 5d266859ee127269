#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train torchvision's Mask R-CNN, the paper's head for objects, on an SViT, and print the metric on the test split.

    python scripts/train_mask_rcnn_with_torchvision.py --data FOLDER --labels cell --output-dir RUN

FOLDER has the splits `train` and `test` with masks of instances (docs/guides/segment_and_detect.md). It needs a
torchvision with its compiled operators, which the one from the package index has not beside a CPU build of torch. RUN
gets the weights (model.safetensors) and the numbers (metrics.json).
"""

import argparse
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from svit_hf import SViTBackbone, SViTConfig
from svit_hf.files import whole_file, write_text
from svit_hf.tasks.average_precision import AveragePrecision
from svit_hf.tasks.instance_segmentation import InstanceSegmentation
from svit_hf.tasks.models import cells_for_image_size
from svit_hf.tasks.objects import Objects, boxes_of_masks
from svit_hf.tasks.pictures import View
from svit_hf.tasks.task import Rows, TrainingExamples


STAGES = ["stage1", "stage2", "stage3", "stage4"]


class SViTPyramid(nn.Module):
    """Feature pyramid on the four stages of an SViT, as torchvision's detectors take it.

    Args:
        backbone: The SViT.
        out_channels: Channels of every level.
    """

    def __init__(self, backbone: SViTBackbone, out_channels: int):
        super().__init__()
        self.body, self.out_channels = backbone, out_channels
        self.pyramid = FeaturePyramidNetwork(list(backbone.channels), out_channels, LastLevelMaxPool())

    def forward(self, pixel_values: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Return five levels, `(B, out_channels, height / stride, width / stride)` with strides 4, 8, 16, 32, 64."""
        maps = self.body(pixel_values).feature_maps
        return self.pyramid(OrderedDict((str(level), features) for level, features in enumerate(maps)))


def build_mask_rcnn(backbone: SViTBackbone, num_classes: int, size: tuple[int, int], width: int) -> MaskRCNN:
    """Build the detector for images that are `size` (height, width) and normalised already."""
    edges = [4 * 2**level for level in range(5)]
    return MaskRCNN(
        SViTPyramid(backbone, width),
        # one for what is no object
        num_classes + 1,
        # nothing is resized, padded or normalised again: the backbone would see the padding
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(tuple((4 * edge,) for edge in edges), ((0.5, 1.0, 2.0),) * len(edges)),
    )


class Targets(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """Augmented pictures with what torchvision wants of each: boxes, labels from 1, and masks."""

    def __init__(self, examples: TrainingExamples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        example = self.examples[index]
        masks = example["mask_labels"] > 0
        return example["pixel_values"], {
            "boxes": torch.from_numpy(boxes_of_masks(masks.numpy())).float(),
            "labels": example["class_labels"] + 1,
            "masks": masks.to(torch.uint8),
        }


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate, print and return the metrics on the test split."""
    options = parse(argv)
    task = InstanceSegmentation(options.labels, options.image_size)
    rows = {split: task.find_rows(options.data, split) for split in ("train", "test")}
    torch.manual_seed(options.seed)
    backbone = make_backbone(options.backbone, task.size)
    model = build_mask_rcnn(backbone, len(task.labels), task.size, options.width)
    examples = TrainingExamples(task, rows["train"], options.seed)
    loader: Any = DataLoader(
        Targets(examples), options.batch_size, shuffle=True, collate_fn=lambda batch: list(zip(*batch, strict=True))
    )
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=0.05)
    model.train()
    for epoch in range(options.epochs):
        examples.set_epoch(epoch)
        total = 0.0
        for pictures, targets in loader:
            loss = sum(model(list(pictures), list(targets)).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{options.epochs}  loss {total / len(loader):.4f}", flush=True)
    metrics = evaluate(task, model, rows["test"])
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(options.output_dir / "model.safetensors") as file:
        save_model(model, str(file))
    write_text(options.output_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(*(f"{name} {value:.4f}" for name, value in metrics.items()), sep="\n")
    return metrics


def make_backbone(checkpoint: str | None, size: tuple[int, int]) -> SViTBackbone:
    """Return a pre-trained SViT whose batch norms stay as they are, or a small one with random weights."""
    if checkpoint is None:
        layout = {"hidden_sizes": [32, 64, 128, 192], "depths": [1, 2, 3, 1], "num_attention_heads": [1, 2, 4, 6]}
        return SViTBackbone(SViTConfig(**layout, out_features=STAGES))
    config = SViTConfig.from_pretrained(checkpoint, out_features=STAGES)
    config.super_token_sizes = cells_for_image_size(config, size)
    backbone = SViTBackbone.from_pretrained(checkpoint, config=config)
    backbone.freeze_batch_norm()
    return backbone


@torch.no_grad()
def evaluate(task: InstanceSegmentation, model: MaskRCNN, rows: Rows) -> dict[str, float]:
    """Return COCO's average precision of the masks."""
    model.train(False)
    metric = AveragePrecision(task.labels, of_masks=True)
    for index in range(len(rows)):
        sample = task.read(*rows[index])
        (found,) = model([View.whole(sample.size, task.size).of_picture(sample.picture)])
        masks = nn.functional.interpolate(found["masks"], sample.size, mode="bilinear")[:, 0].numpy() > 0.5
        is_there = masks.any((1, 2))
        masks = masks[is_there]
        labels, scores = (found[name].numpy()[is_there] for name in ("labels", "scores"))
        metric.update(index, Objects(boxes_of_masks(masks), labels - 1, masks, scores.astype(np.float64)), sample)
    return metric.compute()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", required=True, help="names of the classes, in their order")
    parser.add_argument("--backbone", help="folder or Hub id of an SViT with weights; by default a small random one")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="channels of the pyramid")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
