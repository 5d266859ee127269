# SPDX-License-Identifier: Apache-2.0
"""The tiny SViT that all suites of this folder share, in the form that upstream's mixins ask for.

Three stages, so that every kind of layer is there: super tokens (square and oblong cells), plain attention, stages
with and without layer scale, more heads than one, two sampling rounds.
"""

from typing import Any

import torch
from transformers_tests.test_modeling_common import floats_tensor

from svit_hf import SViTConfig


class SViTModelTester:
    """Make configs and inputs, as the `ModelTester` of a model inside Transformers does."""

    def __init__(self, batch_size: int = 3, image_size: int = 32, is_training: bool = True):
        self.batch_size = batch_size
        self.image_size = image_size
        self.is_training = is_training

    def get_config(self) -> SViTConfig:
        """Return the tiny architecture: 8x8 tokens in the first stage, 2x2 in the last."""
        return SViTConfig(
            image_size=self.image_size,
            hidden_sizes=[8, 16, 32],
            depths=[1, 2, 1],
            num_attention_heads=[1, 2, 4],
            super_token_sizes=[4, [1, 2], 1],
            num_sampling_iterations=[2, 1, 1],
            use_layer_scale=[False, True, True],
            mlp_ratio=2.0,
            drop_path_rate=0.1,
            projection_dim=24,
            out_features=["stage1", "stage3"],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[SViTConfig, dict[str, Any]]:
        """Return a config and what to call a model with."""
        return self.get_config(), {"pixel_values": self.pixel_values()}

    def pixel_values(self) -> torch.Tensor:
        """Return random images, shape `(B, 3, H, W)`."""
        return floats_tensor([self.batch_size, 3, self.image_size, self.image_size])

    @property
    def attention_shapes(self) -> list[tuple[int, int, int]]:
        """`(A, G, G)` of each layer's attention, in the order of the layers."""
        return [(1, 4, 4), (2, 8, 8), (2, 8, 8), (4, 4, 4)]

    @property
    def hidden_state_shapes(self) -> list[tuple[int, int, int]]:
        """`(C, H, W)` of each hidden state: the stem's, then every stage's."""
        return [(8, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
