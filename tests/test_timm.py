# SPDX-License-Identifier: Apache-2.0
"""SViT in timm: the same numbers as here, and what timm's own programs ask of a model."""

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTBackbone, SViTForImageClassification


timm = pytest.importorskip("timm", reason="timm is not installed")

from timm.data import resolve_model_data_config  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

import svit_hf.timm  # noqa: E402, F401 - it registers


# fields of the test-size model, as keywords of timm.create_model
NAMES = (
    "hidden_sizes", "depths", "num_attention_heads", "super_token_sizes", "use_layer_scale", "layer_scale_init_value",
    "projection_dim",
)  # fmt: skip
TINY = {name: getattr(tiny_config(), name) for name in NAMES}


@pytest.fixture
def ours():
    return SViTForImageClassification(tiny_config()).eval()


def make(**kwargs):
    return timm.create_model("svit_small", **(TINY | kwargs)).eval()


def test_numbers_are_those_of_the_model(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    model = make(num_classes=5, checkpoint_path=str(tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(images), ours(images).logits, rtol=0, atol=0)
        expected = ours.svit(images)
        features = model.forward_features(images)
        torch.testing.assert_close(features, expected.last_hidden_state, rtol=0, atol=0)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=0)
    assert (features.shape[1], pooled.shape[1]) == (model.num_features, model.head_hidden_size) == (24, 32)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 2), (3,)])
def test_features_are_those_of_the_backbone(ours, indices):
    backbone = SViTBackbone(tiny_config(out_features=[f"stage{index + 1}" for index in indices])).eval()
    backbone.svit.load_state_dict(ours.svit.state_dict(), strict=False)
    model = make(features_only=True, out_indices=indices)
    model.load_state_dict({f"model.{key}": value for key, value in ours.state_dict().items()}, strict=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = model(images)
        for found, expected in zip(maps, backbone(images).feature_maps, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.feature_info.channels() == [found.shape[1] for found in maps]
    assert model.feature_info.reduction() == [64 // found.shape[2] for found in maps]
    # what comes after the last one costs nothing
    assert len(model.model.svit.stages) == max(indices) + 1


def test_published_layouts_are_registered():
    assert timm.list_models("svit_*") == ["svit_base", "svit_large", "svit_small"]
    with torch.device("meta"):
        model = timm.create_model("svit_small")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == 25.496
    assert resolve_model_data_config(model)["input_size"] == (3, 224, 224)


def test_classifier_is_replaced_and_removed():
    model = make(num_classes=7, in_chans=1)
    images = torch.randn(1, 1, 64, 64)
    assert model(images).shape == (1, 7)
    model.reset_classifier(3)
    assert (model(images).shape, model.num_classes, model.get_classifier().out_features) == ((1, 3), 3, 3)
    model.reset_classifier(0)
    assert model(images).shape == (1, model.head_hidden_size)
    assert make(num_classes=0, in_chans=1)(images).shape == (1, 32)


def test_a_training_step_of_timm():
    model = make(num_classes=3, drop_rate=0.1, drop_path_rate=0.1).train()
    model.set_grad_checkpointing()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    # the stem, four stages' layers and steps, and the head learn at different rates
    assert len({group["lr_scale"] for group in optimizer.param_groups}) >= 5
    before = model.classifier.weight.clone()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.classifier.weight, before)
    assert {type(layer.drop_path).__name__ for layer in model.svit.stages[3].layers} == {"SViTDropPath"}
    assert model.svit.stages[3].layers[0].drop_path.rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"global_pool": "max"}, ValueError, "`global_pool` is 'max'"),
        ({"patch_size": 8}, TypeError, "'patch_size' is no argument"),
        ({"num_attention_heads": [3, 2, 2, 4]}, ValueError, "`num_attention_heads`"),
    ],
)
def test_impossible_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)
