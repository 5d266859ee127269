# SPDX-License-Identifier: Apache-2.0
"""Pictures of noise whose brightest corner is their class, as files and as parquet, and a model to look at them."""

import io

import datasets
import numpy as np
import torch
from picture_data import encoded
from PIL import Image
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessorPil


NAMES = ["cat", "dog", "eel", "fox", "gnu"]
NUM_IMAGES = 101


def picture(number):
    """Return the bytes of a PNG; no two of the pictures are alike, nor all of one size."""
    return encoded(np.random.default_rng(number).integers(0, 255, (36 + number % 7, 40, 3), dtype=np.uint8))


def labels(num_images=NUM_IMAGES):
    return np.random.default_rng(0).integers(0, len(NAMES), NUM_IMAGES).tolist()[:num_images]


def write_parquet(path, num_images=NUM_IMAGES, *, names=NAMES, broken=(), rows_per_group=23):
    """Write pictures with labels, or without if these have no names; pictures in `broken` end too early."""
    images = [picture(number)[: 60 if number in broken else None] for number in range(num_images)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    columns = {"image": [{"bytes": image, "path": None} for image in images]}
    if names:
        features["label"], columns["label"] = datasets.ClassLabel(names=names), labels(num_images)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_dict(columns, features=features).cast_column("image", datasets.Image())
    data.to_parquet(path, batch_size=rows_per_group)


def make_classifier(folder, *, seed=0, names=NAMES):
    """Write a tiny model with random weights that answers not always the same, and return it."""
    torch.manual_seed(seed)
    named = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = SViTForImageClassification(
        tiny_config(image_size=32, initializer_range=0.5, num_labels=len(names), **named)
    ).eval()
    with torch.no_grad():
        # batch norms as after training, on pictures like these
        model.train()
        for _ in range(30):
            model(torch.randn(8, 3, 32, 32))
        model.eval()
    model.save_pretrained(folder)
    SViTImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(folder)
    return model


def logits_of(model, numbers=range(NUM_IMAGES), **kwargs):
    """Return what a model says of pictures, one by one, without any of the code that is tested."""
    processor = SViTImageProcessorPil(**({"size": {"shortest_edge": 32}} | kwargs))
    images = [Image.open(io.BytesIO(picture(number))) for number in numbers]
    with torch.no_grad():
        return torch.cat([model(processor(image, return_tensors="pt")["pixel_values"]).logits for image in images])
