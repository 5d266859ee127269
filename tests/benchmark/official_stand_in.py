# SPDX-License-Identifier: Apache-2.0
"""A file as `--baseline` takes it: the official parameter names around our own arithmetic."""

import torch
from torch import nn

from svit_hf import SViTConfig, SViTForImageClassification
from svit_hf.convert.key_mapping import official_shape, to_official


class STViTAsReleased(nn.Module):
    """Hold the weights of one of our models under official names, and compute what it computes."""

    def __init__(self, config, drop_path_rate=0.0):
        super().__init__()
        self.ours = SViTForImageClassification(
            SViTConfig(
                hidden_sizes=config["embed_dim"],
                depths=config["depths"],
                num_attention_heads=config["num_heads"],
                super_token_sizes=config["stoken_size"],
                num_sampling_iterations=config["n_iter"],
                use_layer_scale=config["layerscale"],
                projection_dim=config["projection"],
                num_labels=config["num_classes"],
                drop_path_rate=drop_path_rate,
            )
        )

    def named_parameters(self, *args, **kwargs):
        """Name the parameters as the official code does."""
        return ((to_official(name), parameter) for name, parameter in self.ours.named_parameters())

    def load_state_dict(self, state, strict=True):
        """Load weights with official names."""
        own = {}
        for name, tensor in self.ours.state_dict().items():
            official = state[to_official(name)]
            assert official.shape == official_shape(name, tuple(tensor.shape))
            own[name] = official.reshape(tensor.shape)
        self.ours.load_state_dict(own)
        return [], []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.ours(images).logits
