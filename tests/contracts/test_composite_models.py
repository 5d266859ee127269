# SPDX-License-Identifier: Apache-2.0
"""SViT as the backbone of Transformers' dense heads: the way in and out of a checkpoint loses no weight.

Composite models rename keys when they save and load, and their patterns meet the backbone's keys too. A key that one
of them hits comes back as random weights, with no more than a line in the load report.
"""

import re

import pytest
import torch
from tiny import tiny_config
from transformers import (
    BertConfig,
    BertModel,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VisionTextDualEncoderModel,
)

from svit_hf import SViTBackbone, SViTForImageClassification, SViTModel


# the group norms of the mask heads have 32 groups
CHANNELS = [32, 32, 64, 64]
TRANSFORMER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 5,
}

# parts of names that some composite model, or Transformers for old checkpoints, renames
RENAMED = [
    r"layers\.\d+\.fc[12]\b",
    r"\bout_proj\b",
    r"encoder\.encoder\b",
    r"\bconv_encoder\b",
    r"LayerNorm\.(gamma|beta)",
    r"\.weight_[gv]\b",
]


def backbone_config(*out_features):
    return tiny_config(hidden_sizes=CHANNELS, num_attention_heads=[1, 1, 2, 2], out_features=list(out_features))


def all_stages():
    return backbone_config("stage1", "stage2", "stage3", "stage4")


def upernet():
    head = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_in_channels": CHANNELS[-2], "auxiliary_channels": 8}
    config = UperNetConfig(backbone_config=all_stages(), num_labels=3, **head)
    return UperNetForSemanticSegmentation(config), "logits"


def mask_former():
    config = MaskFormerConfig(
        backbone_config=all_stages(),
        decoder_config=DetrConfig(backbone_config=backbone_config("stage4"), **TRANSFORMER),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
    )
    return MaskFormerForInstanceSegmentation(config), "masks_queries_logits"


def mask2former():
    config = Mask2FormerConfig(
        backbone_config=all_stages(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    return Mask2FormerForUniversalSegmentation(config), "masks_queries_logits"


def detr():
    config = DetrConfig(backbone_config=backbone_config("stage4"), num_labels=3, **TRANSFORMER)
    return DetrForObjectDetection(config), "pred_boxes"


def rt_detr():
    config = RTDetrConfig(
        backbone_config=backbone_config("stage2", "stage3", "stage4"),
        encoder_in_channels=CHANNELS[1:],
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        num_labels=3,
        **TRANSFORMER,
    )
    return RTDetrForObjectDetection(config), "pred_boxes"


@pytest.mark.parametrize("build", [upernet, mask_former, mask2former, detr, rt_detr], ids=lambda build: build.__name__)
def test_save_and_load_keeps_every_weight(build, tmp_path):
    model, output = build()
    model.eval()
    assert any(isinstance(module, SViTBackbone) for module in model.modules())
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixels)[output], model(pixels)[output])


def test_joins_a_text_model_by_its_pooled_output():
    text = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    vision = SViTModel(tiny_config())
    assert vision.config.hidden_size == vision.config.projection_dim != vision.config.hidden_sizes[-1]
    model = VisionTextDualEncoderModel(vision_model=vision, text_model=text).eval()
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([[1, 2], [3, 4]]), pixel_values=torch.randn(2, 3, 64, 64))
    assert outputs.logits_per_image.shape == (2, 2)
    assert outputs.logits_per_image.isfinite().all()


@pytest.mark.parametrize("model_class", [SViTForImageClassification, SViTBackbone])
def test_no_name_is_one_that_composite_models_rename(model_class):
    names = model_class(tiny_config()).state_dict()
    assert not [name for name in names if re.search("|".join(RENAMED), name)]
