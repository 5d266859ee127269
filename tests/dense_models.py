# SPDX-License-Identifier: Apache-2.0
"""Every head for segmentation and detection, as small as it goes, with targets that give a loss."""

import torch
from tiny import tiny_config

from svit_hf import build_model
from svit_hf.tasks.heads import HEADS, find_head


LABELS = ["cell", "hole", "rim"]
SIZE = (64, 96)
_TRANSFORMER = {
    "num_queries": 6,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
OPTIONS = {
    "upernet": {"pool_scales": [1, 2]},
    "mask2former": {
        "num_queries": 6,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "train_num_points": 64,
        "places_queries": True,
    },
    "maskformer": {},
    "d_fine": {**_TRANSFORMER, "num_denoising": 4, "hidden_expansion": 0.5},
    "rt_detr_v2": {**_TRANSFORMER, "num_denoising": 4, "hidden_expansion": 0.5},
    "deformable_detr": _TRANSFORMER,
    "conditional_detr": _TRANSFORMER,
    "detr": _TRANSFORMER,
}


def pretrained_config():
    """Return the architecture of the checkpoint; the norms of mask heads have 32 groups."""
    return tiny_config(hidden_sizes=[16, 32, 32, 64], num_attention_heads=[1, 1, 2, 2])


def small_model(head, backbone):
    """Build a model with the head, for its first task."""
    return build_model(HEADS[head].tasks[0], backbone, LABELS, SIZE, head, width=32, head_options=OPTIONS[head])


def save_model(task, folder, labels=("cell", "hole"), size=(64, 64), backbone=None):
    """Save a model with the default head of a task, and its image processor; return the model."""
    head = find_head(task, None)
    options = {"width": 32, "head_options": OPTIONS[head.name]}
    model = build_model(task, backbone or pretrained_config(), list(labels), size, **options)
    model.save_pretrained(folder)
    head.make_processor(size).save_pretrained(folder)
    return model


def targets(head, empty=False):
    """Return what the model wants besides the pixels of two pictures; with `empty`, pictures of nothing."""
    some, none = torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)
    first = none if empty else some
    if head == "upernet":
        return {"labels": torch.full((2, *SIZE), 255) if empty else torch.randint(0, 3, (2, *SIZE))}
    if "mask" in head:
        masks = (torch.rand(len(first), *SIZE) < 0.5).float()
        return {"mask_labels": [masks, torch.zeros(0, *SIZE)], "class_labels": [first, none]}
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]])[: len(first)]
    return {
        "labels": [
            {"class_labels": first, "boxes": boxes},
            {"class_labels": none, "boxes": torch.zeros(0, 4)},
        ]
    }
