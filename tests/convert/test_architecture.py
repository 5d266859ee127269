# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden import official_weights

from svit_hf import SViTConfig, SViTForImageClassification
from svit_hf.convert import build_model, infer_config
from svit_hf.convert.architecture import VARIANTS
from svit_hf.convert.key_mapping import official_shape, to_official
from svit_hf.errors import ConversionError


TINY_FIELDS = official_weights.fields_without_shape("tiny")


@pytest.fixture(scope="module")
def tiny_weights():
    return official_weights.official_state_dict("tiny")


def official_weights_of(model):
    """Give the weights of one of our models as an official state dict."""
    return {
        to_official(key): value.reshape(official_shape(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_published_models_are_recognised(name):
    shapes = official_weights.LAYOUTS[name]["state_dict"]
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    expected = VARIANTS[name](num_labels=1000).to_dict()
    assert infer_config(state_dict).to_dict() == expected
    assert infer_config(state_dict, variant=name).to_dict() == expected
    for other in VARIANTS.keys() - {name}:
        with pytest.raises(ConversionError, match=rf"`variant` is '{other}'.*: {name} of"):
            infer_config(state_dict, variant=other)


def test_what_shapes_do_not_tell_is_asked_for(tiny_weights):
    with pytest.raises(ConversionError, match="num_attention_heads, super_token_sizes, num_sampling_iterations"):
        infer_config(tiny_weights)
    with pytest.raises(ConversionError, match="do not tell num_sampling_iterations; give"):
        infer_config(tiny_weights, config={key: TINY_FIELDS[key] for key in list(TINY_FIELDS)[:2]})


@pytest.mark.parametrize(
    "fields",
    [
        {"num_channels": 1},
        {"qkv_bias": False},
        {"mlp_ratio": 2.5},
        {"projection_dim": 24},
        {"num_labels": 0},
        {"use_layer_scale": [True, False]},
        {"hidden_sizes": [6, 10], "depths": [3, 1]},
        {
            "hidden_sizes": [8] * 10 + [12],
            "depths": [1] * 10 + [2],
            "num_attention_heads": [2] * 11,
            "super_token_sizes": [1] * 11,
            "num_sampling_iterations": [1] * 11,
            "use_layer_scale": [False] * 11,
        },
    ],
    ids=["grey", "no-bias", "ratio", "projection", "headless", "layer-scale", "widths-and-depths", "11-stages"],
)
def test_any_architecture_is_read_off_its_shapes(fields):
    layout = {
        "hidden_sizes": [8, 12],
        "depths": [1, 2],
        "num_attention_heads": [1, 2],
        "super_token_sizes": [2, 1],
        "num_sampling_iterations": [1, 1],
        "use_layer_scale": [False, False],
        "num_labels": 3,
    } | fields
    model = SViTForImageClassification(SViTConfig(**layout)).eval()
    told = {key: layout[key] for key in TINY_FIELDS}
    state_dict = official_weights_of(model)
    config = infer_config(state_dict, config=told)
    assert config.to_dict() == model.config.to_dict()
    pixel_values = torch.randn(1, config.num_channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(build_model(state_dict, config)(pixel_values).logits, model(pixel_values).logits)


def test_fields_given_win_over_the_published_ones():
    shapes = official_weights.LAYOUTS["small"]["state_dict"]
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = infer_config(state_dict, config={"super_token_sizes": [16, 8, 1, 1], "drop_path_rate": 0.1})
    assert config.super_token_sizes == [16, 8, 1, 1]
    assert config.drop_path_rate == 0.1
    assert config.num_attention_heads == [1, 2, 5, 8]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": [1, 2, 2, 4]}, r"has \['num_heads'\]; allowed are .*'num_attention_heads'"),
        ({"num_attention_heads": [1, 2, 2, 5]}, "does not divide"),
        ({"num_attention_heads": "many"}, "num_attention_heads"),
        ({"depths": 4}, "no possible architecture"),
        ({"id2label": {0: "cat", 1: "dog"}}, "names 2 classes; the checkpoint has 10"),
        ({"id2label": ["cat"] * 10}, "no possible architecture"),
        ({"num_labels": 3}, "names 3 classes; the checkpoint has 10"),
    ],
    ids=["unknown", "impossible", "wrong-type", "no-list", "two-labels", "label-list", "three-labels"],
)
def test_impossible_fields_are_refused(tiny_weights, fields, message):
    with pytest.raises(ConversionError, match=message):
        infer_config(tiny_weights, config=TINY_FIELDS | fields)


def test_weights_of_other_models_are_refused():
    resnet_like = {"conv1.weight": torch.ones(4, 3, 7, 7), "fc.weight": torch.ones(10, 4)}
    with pytest.raises(ConversionError, match=r"not those of an official SViT.*conv1\.weight"):
        infer_config(resnet_like)
