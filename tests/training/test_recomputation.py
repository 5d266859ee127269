# SPDX-License-Identifier: Apache-2.0
"""Selective checkpointing: the same step as without, in which projections and attention run once."""

import copy
from collections import Counter

import pytest
import torch
from tiny import one_stage_config, tiny_config
from torch.profiler import ProfilerActivity, profile

from svit_hf import SViTForImageClassification
from svit_hf.training.recomputation import selective_checkpointing


@pytest.fixture
def models():
    return models_of(tiny_config(drop_path_rate=0.3))


def models_of(config):
    torch.manual_seed(0)
    plain = SViTForImageClassification(config).train()
    full, selective = copy.deepcopy(plain), copy.deepcopy(plain)
    full.gradient_checkpointing_enable()
    selective.gradient_checkpointing_enable(selective_checkpointing())
    return {"plain": plain, "full": full, "selective": selective}


def take_step(model):
    torch.manual_seed(1)
    loss = model(torch.randn(4, 3, 64, 64), labels=torch.arange(4)).loss
    loss.backward()
    return loss


def test_gradients_and_statistics_are_those_without(models):
    plain, selective = models["plain"], models["selective"]
    torch.testing.assert_close(take_step(selective), take_step(plain))
    torch.testing.assert_close(dict(selective.named_buffers()), dict(plain.named_buffers()))
    for (name, parameter), expected in zip(selective.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_only_cheap_operations_run_twice(models):
    calls = {}
    for name, model in models.items():
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            take_step(model)
        calls[name] = Counter(kind for event in profiler.events() if (kind := what_ran(event)))
    for kind in ("projection", "attention"):
        assert calls["selective"][kind] == calls["plain"][kind] < calls["full"][kind]
    assert calls["selective"]["depthwise"] == calls["full"]["depthwise"] > calls["plain"]["depthwise"]


def what_ran(event):
    """Tell what was computed, leaving out calls that checkpointing answered from what it keeps."""
    if event.name == "aten::_convolution":
        _, fan_in, *kernel_size = event.input_shapes[1]
        return "projection" if kernel_size == [1, 1] else "depthwise" if fan_in == 1 else "other convolution"
    is_taken_over = any(child.name == "PythonDispatchMode" for child in event.cpu_children)
    is_attention = event.name == "aten::_scaled_dot_product_flash_attention_for_cpu"
    return "attention" if is_attention and not is_taken_over else None


@pytest.mark.slow
def test_compiles():
    models = models_of(one_stage_config())
    expected = take_step(models["plain"])
    compiled = models["selective"]
    compiled.compile(backend="aot_eager")
    torch.testing.assert_close(take_step(compiled), expected)
    for parameter, reference in zip(compiled.parameters(), models["plain"].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad)
