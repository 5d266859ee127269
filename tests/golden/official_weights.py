# SPDX-License-Identifier: Apache-2.0
"""Stand-in weights in the layout of the official checkpoints, and what the official model computed with them.

Every tensor is a function of its key and shape alone, so that anybody can regenerate the weights. See README.md.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


GOLDEN = Path(__file__).parent
LAYOUTS = json.loads((GOLDEN / "layouts.json").read_text())
CHECKPOINT = GOLDEN / "tiny_checkpoint.pth"


def fill(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor that the reference model held under `key`."""
    if key.endswith(("unfold.weights", "fold.weights")):
        return torch.eye(9).reshape(9, 1, 3, 3)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        value = rng.normal(0.0, 0.1, shape)
    elif "gamma_" in key:
        value = rng.normal(0.5, 0.1, shape)
    elif len(shape) == 1:
        # the weight of a norm
        value = rng.uniform(0.5, 1.5, shape)
    else:
        on_residual = key.endswith(
            ("fc2.weight", "stoken_refine.proj.weight", "pos_embed.conv.weight", "conv.conv.weight")
        )
        # keeps activations near unit scale through 38 blocks
        gain = 0.2 if on_residual else 1.0
        value = rng.normal(0.0, gain / np.sqrt(np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def official_state_dict(name: str) -> dict[str, torch.Tensor]:
    """Return the full state dict, with official keys and shapes, of one of the layouts in `layouts.json`."""
    return {key: fill(key, tuple(shape)) for key, shape in LAYOUTS[name]["state_dict"].items()}


def pixel_values(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return the reference input: standard normal pixels, float32, `(batch, 3, height, width)`."""
    rng = np.random.default_rng([seed, batch, height, width])
    return torch.from_numpy(rng.standard_normal((batch, 3, height, width), dtype=np.float32))


def recorded(name: str) -> dict[str, torch.Tensor]:
    """Return what the official model of this layout gave; README.md explains the keys."""
    return load_file(GOLDEN / f"{name}.safetensors")


def fields_without_shape(name: str) -> dict[str, Any]:
    """Return the fields of `SViTConfig` that the weights of this layout do not tell."""
    layout = LAYOUTS[name]["config"]
    return {
        "num_attention_heads": layout["num_heads"],
        "super_token_sizes": layout["stoken_size"],
        "num_sampling_iterations": layout["n_iter"],
    }
