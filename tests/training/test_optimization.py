# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification, build_model
from svit_hf.errors import SViTError
from svit_hf.training.optimization import (
    layer_of,
    learning_rate,
    make_optimizer,
    num_layers,
    parameter_groups,
    set_learning_rate,
)
from svit_hf.training.options import ModelOptions, OptimizationOptions
from svit_hf.training.starting_model import freeze


OFFICIAL = OptimizationOptions()


def test_official_learning_rates():
    assert OFFICIAL.peak_learning_rate == 1e-3
    rates = [learning_rate(OFFICIAL, update, 10) for update in range(3000)]
    assert rates[0] == 1e-6
    assert rates[25] == pytest.approx((1e-6 + 1e-3) / 2)
    assert rates[50] == max(rates) == 1e-3
    # half way between the end of the warm-up and the end of the run
    assert rates[1525] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3)
    assert sorted(rates[50:], reverse=True) == rates[50:]


def test_constant_schedule_and_no_scaling():
    options = replace(OFFICIAL, schedule="constant", base_batch_size=0, warmup_epochs=0, learning_rate=5e-6)
    assert {learning_rate(options, update, 7) for update in (0, 1, 2099)} == {5e-6}


def test_linear_schedule():
    options = replace(OFFICIAL, schedule="linear", warmup_epochs=0, epochs=10, final_learning_rate=0.0)
    assert [learning_rate(options, update, 1) for update in (0, 5, 9)] == pytest.approx([1e-3, 5e-4, 1e-4])


def test_learning_rate_follows_the_batch():
    assert replace(OFFICIAL, batch_size=256).peak_learning_rate == 2.5e-4


def names_by_decay(model, **options):
    groups = parameter_groups(model, replace(OFFICIAL, **options))
    return {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}


def test_biases_and_norms_do_not_decay():
    model = SViTForImageClassification(tiny_config())
    found = names_by_decay(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert found[name] == (0.05 if parameter.ndim > 1 else 0.0, 1.0)


def test_layer_scales_decay_on_request():
    model = SViTForImageClassification(tiny_config())
    without, with_decay = names_by_decay(model), names_by_decay(model, decay_layer_scale=True)
    changed = {name for name in without if without[name] != with_decay[name]}
    # two in each layer of the last two stages
    assert len(changed) == 4
    assert all(name.endswith("layer_scale1.scale") or name.endswith("layer_scale2.scale") for name in changed)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = SViTForImageClassification(tiny_config())
    model.svit.requires_grad_(False)
    assert names_by_decay(model).keys() == {"classifier.weight", "classifier.bias"}
    model.requires_grad_(False)
    with pytest.raises(SViTError, match="nothing to optimise"):
        make_optimizer(model, OFFICIAL)


def test_layers_are_numbered_from_stem_to_classifier():
    config = tiny_config()
    assert config.depths == [1, 2, 1, 1]
    expected = {
        "svit.embeddings.layers.0.convolution.weight": 0,
        "svit.stages.0.layers.0.mlp.fc1.weight": 1,
        "svit.stages.1.downsampling.convolution.weight": 2,
        "svit.stages.1.layers.0.mlp.fc1.weight": 2,
        "svit.stages.1.layers.1.mlp.fc1.weight": 3,
        "svit.stages.3.layers.0.mlp.fc1.weight": 5,
        "svit.pooler.projection.weight": 6,
        "classifier.weight": 6,
    }
    names = dict(SViTForImageClassification(config).named_parameters())
    assert expected.keys() <= names.keys()
    assert {name: layer_of(name, config) for name in expected} == expected
    assert num_layers(config) == 7


def test_layer_decay_scales_the_learning_rate():
    model = SViTForImageClassification(tiny_config())
    optimizer = make_optimizer(model, replace(OFFICIAL, layer_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["classifier.bias"] == 0.1
    assert rates["svit.stages.1.layers.1.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5**3)
    assert rates["svit.embeddings.layers.0.convolution.weight"] == pytest.approx(0.1 * 0.5**6)
    with pytest.raises(SViTError, match="layer_decay"):
        make_optimizer(torch.nn.Linear(2, 2), replace(OFFICIAL, layer_decay=0.5))


def test_head_of_a_dense_task_is_the_last_layer_and_its_backbone_may_be_frozen():
    model = build_model("detection", tiny_config(), ["cat"], 64, width=32)
    found = names_by_decay(model, layer_decay=0.5)
    # D-FINE has two numbers among its parameters that never train
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = {name: scale for name, (_, scale) in found.items()}
    backbone = {name for name in scales if name.startswith("model.backbone.model.svit.")}
    assert {scales[name] for name in scales.keys() - backbone} == {1.0}
    assert scales["model.backbone.model.svit.stages.1.layers.1.mlp.fc1.weight"] == 0.5**3
    assert scales["model.backbone.model.svit.embeddings.layers.0.convolution.weight"] == 0.5**6
    freeze(model, ModelOptions(freeze_backbone=True, freeze_batch_norm=True))
    assert names_by_decay(model).keys() == scales.keys() - backbone
    norms = {name: norm.training for name, norm in model.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    assert {name for name in norms if not norms[name]} == {name for name in norms if ".backbone." in name}


def test_first_step_is_that_of_adamw():
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(model, replace(OFFICIAL, weight_decay=0.1))
    set_learning_rate(optimizer, 0.01)
    before = model.weight.item()
    model.weight.grad = torch.full_like(model.weight, 3.0)
    optimizer.step()
    # the first step of Adam has the size of the learning rate, after the decay
    assert math.isclose(model.weight.item(), before * (1 - 0.01 * 0.1) - 0.01, rel_tol=1e-5)
