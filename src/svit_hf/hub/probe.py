# SPDX-License-Identifier: Apache-2.0
"""The probe beside saved weights: a small made-up image, and what the model computes for it.

Weights that silently did not load, and versions of libraries that compute something else, show in one forward pass.
"""

import copy
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from svit_hf.files import whole_file
from svit_hf.kernels import use_kernels
from svit_hf.model.configuration_video_svit import SViTVideoConfig


PROBE_FILE = "probe.safetensors"

# of the image: several cells in every stage, and edges that are no multiples of them
_PROBE_SIZE = (75, 101)
# of dense heads, which choose among the places of an image: each pixel of the probe is enlarged to what they take
_DENSE_SIZE = "image_size"
# what is kept of a map: heads give one value per pixel and class
_CELLS = 8
_SEED = 20221121


def write_probe(model: PreTrainedModel, directory: str | os.PathLike[str]) -> None:
    """Write `probe.safetensors`: `pixel_values`, and the outputs in float32 and evaluation mode.

    A video model gets three frames as one clip.

    Args:
        model: Any SViT model, or a head of Transformers on one, wholly in memory. It is left as it is.
        directory: The folder of the saved weights.
    """
    generator = torch.Generator().manual_seed(_SEED)
    config = getattr(model.config, "backbone_config", model.config)
    num_images = 3 if isinstance(config, SViTVideoConfig) else 1
    tensors = {"pixel_values": torch.randn(num_images, config.num_channels, *_PROBE_SIZE, generator=generator)}
    if config is not model.config:
        size = config.image_size
        tensors[_DENSE_SIZE] = torch.tensor([size, size] if isinstance(size, int) else size)
    tensors |= _outputs(model, tensors)
    with whole_file(Path(directory) / PROBE_FILE) as temporary:
        safetensors.torch.save_file(tensors, temporary)


def compare_with_probe(model: PreTrainedModel, directory: str | os.PathLike[str]) -> float | None:
    """Compute a folder's probe with a model.

    Args:
        model: The model that was loaded from the folder, of the class that was saved there or another one.
        directory: A folder that `save_with_code` has written.

    Returns:
        The largest difference of an output, in norm and relative to what is recorded; infinite where an output is not
        finite or has another shape. None if there is no probe, or nothing in it that such a model computes.
    """
    path = Path(directory) / PROBE_FILE
    if not path.is_file():
        return None
    recorded = safetensors.torch.load_file(path)
    outputs = _outputs(model, recorded)
    differences = [_difference(outputs[name], recorded[name]) for name in outputs.keys() & recorded.keys()]
    return max(differences, default=None)


def _outputs(model: PreTrainedModel, probe: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    twin: Any = copy.deepcopy(model)
    twin.to(device="cpu", dtype=torch.float32).train(False)
    use_kernels(twin, None)
    pixel_values, is_dense = probe["pixel_values"], _DENSE_SIZE in probe
    if is_dense:
        pixel_values = F.interpolate(pixel_values, probe[_DENSE_SIZE].tolist())
    with torch.no_grad():
        outputs = twin(pixel_values=pixel_values, return_dict=True)
    named = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    if is_dense:
        # only then: it loads all heads
        from svit_hf.tasks.saved_models import OUTPUTS

        return {name: _summary(named[name]) for name in OUTPUTS if name in named}
    named |= {f"feature_maps.{index}": value for index, value in enumerate(outputs.get("feature_maps") or ())}
    return {name: value.contiguous() for name, value in named.items()}


def _summary(output: torch.Tensor) -> torch.Tensor:
    """Return what a head says, smaller: means of the cells of maps, or means over queries, which come in any order."""
    return F.adaptive_avg_pool2d(output, _CELLS) if output.ndim == 4 else output.mean(dim=1)


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()
