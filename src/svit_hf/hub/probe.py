# SPDX-License-Identifier: Apache-2.0
"""A probe beside the weights: pixel values, and the logits that the model had for them when it was saved."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import PreTrainedModel

from svit_hf.files import whole_file


PROBE_FILE = "probe.safetensors"


def write_probe(model: PreTrainedModel, directory: str | os.PathLike[str]) -> None:
    """Write the probe of a classifier."""
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, model.config.num_channels, height, width, generator=generator)
    with whole_file(Path(directory) / PROBE_FILE) as temporary:
        save_file({"pixel_values": pixel_values, "logits": _logits(model, pixel_values)}, temporary)


def compare_with_probe(model: PreTrainedModel, directory: str | os.PathLike[str]) -> float | None:
    """Return the largest difference from the logits of the probe; `None` if there is no probe."""
    path = Path(directory) / PROBE_FILE
    if not path.is_file():
        return None
    probe = load_file(path)
    return (_logits(model, probe["pixel_values"]) - probe["logits"]).abs().max().item()


def _logits(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(pixel_values.to(model.device, model.dtype)).logits
    finally:
        model.train(was_training)
    return logits.float().cpu().contiguous()
