# SPDX-License-Identifier: Apache-2.0
"""Tiny vision transformers of Transformers with random weights, one of each type that super tokens are put into."""

import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)


LAYOUT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SIZES = {"image_size": 24, "patch_size": 4}  # 6x6 patches
SIGLIP = LAYOUT | SIZES
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**LAYOUT, **SIZES)),
    "deit": lambda: DeiTModel(DeiTConfig(**LAYOUT, **SIZES)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**LAYOUT, **SIZES, mlp_ratio=2)),
    "dinov2-registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**LAYOUT, **SIZES, mlp_ratio=2, num_register_tokens=3)
    ),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**LAYOUT, **SIZES, num_register_tokens=2)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIGLIP)),
}
# with names of stages, `stem` and `stage1` to `stage3`, whose maps they give
BACKBONES = {
    "dinov2": lambda names: Dinov2Backbone(Dinov2Config(**LAYOUT, **SIZES, mlp_ratio=2, out_features=names)),
    "dinov2-registers": lambda names: Dinov2WithRegistersBackbone(
        Dinov2WithRegistersConfig(**LAYOUT, **SIZES, mlp_ratio=2, num_register_tokens=3, out_features=names)
    ),
    "dinov3": lambda names: DINOv3ViTBackbone(
        DINOv3ViTConfig(**LAYOUT, **SIZES, num_register_tokens=2, out_features=names)
    ),
}
# float32 against the model's own attention: the worst that was measured is 1e-6
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def make(name):
    return with_large_weights(MODELS[name]())


def with_large_weights(model):
    # as large as in trained networks: with small ones attention hardly matters
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def states(model, pixels=None, **kwargs):
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3)) if pixels is None else pixels
    return model(pixel_values=pixels, **kwargs).last_hidden_state


def give_no_positions(model):
    """Let equal patches be equal wherever they are."""
    for name, parameter in model.named_parameters():
        if "position" in name:
            nn.init.zeros_(parameter)
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.zero_()
