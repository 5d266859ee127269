# SPDX-License-Identifier: Apache-2.0
"""The test-size SViT: every mechanism of the published models at widths that run in milliseconds."""

from typing import Any

from svit_hf import SViTConfig


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
