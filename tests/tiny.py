# SPDX-License-Identifier: Apache-2.0
"""The test-size SViT: every mechanism of the published models at widths that run in milliseconds."""

from typing import Any

import torch

from svit_hf import SViTConfig, SViTVideoConfig
from svit_hf.model.modeling_video_svit import SViTTemporalPositionEmbedding


def tiny_config(**kwargs: Any) -> SViTConfig:
    """Return a config of four small stages, with layer scale in the last two; `kwargs` win."""
    layout: dict[str, Any] = {
        "image_size": 64,
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "super_token_sizes": [4, 2, 1, 1],
        "use_layer_scale": [False, False, True, True],
        "layer_scale_init_value": 0.5,
        "projection_dim": 32,
        "num_labels": 5,
    }
    return SViTConfig(**(layout | kwargs))


def tiny_video_config(**kwargs: Any) -> SViTVideoConfig:
    """Return the same for clips of four frames."""
    return SViTVideoConfig(**(tiny_config().to_dict() | {"model_type": "svit_video", "num_frames": 4} | kwargs))


def order_frames(model: torch.nn.Module) -> torch.nn.Module:
    """Give the order of frames a weight in a video model, as training does."""
    for module in model.modules():
        if isinstance(module, SViTTemporalPositionEmbedding):
            torch.nn.init.normal_(module.weight, std=0.5)
    return model


def two_stage_config(**kwargs: Any) -> SViTConfig:
    """Return a config of a stage with super tokens and one without, for compilers, which take time for each layer."""
    layout: dict[str, Any] = {
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "super_token_sizes": [4, 1],
        "num_sampling_iterations": [1, 1],
        "use_layer_scale": [False, True],
    }
    return tiny_config(**(layout | kwargs))


def one_stage_config(**kwargs: Any) -> SViTConfig:
    """Return a config of a single layer, with super tokens."""
    layout: dict[str, Any] = {
        "hidden_sizes": [8],
        "depths": [1],
        "num_attention_heads": [1],
        "super_token_sizes": [4],
        "num_sampling_iterations": [1],
        "use_layer_scale": [True],
    }
    return tiny_config(**(layout | kwargs))
