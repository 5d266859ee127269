# SPDX-License-Identifier: Apache-2.0
"""The probe beside saved weights finds models that compute something else."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from svit_hf import SViTBackbone, SViTForImageClassification, SViTModel, save_with_code
from svit_hf.hub.probe import PROBE_FILE, compare_with_probe, write_probe


@pytest.mark.parametrize("model_class", [SViTForImageClassification, SViTModel, SViTBackbone])
def test_what_was_saved_agrees_and_other_weights_do_not(model_class, tmp_path):
    model = model_class(tiny_config()).train()
    save_with_code(model, tmp_path)
    assert model.training
    loaded = model_class.from_pretrained(tmp_path)
    assert compare_with_probe(loaded, tmp_path) < 1e-6
    other = model_class(tiny_config())
    assert compare_with_probe(other, tmp_path) > 1e-2


def test_classifier_holds_its_logits_in_float32(tmp_path):
    model = SViTForImageClassification(tiny_config(num_channels=1)).to(torch.bfloat16)
    write_probe(model, tmp_path)
    probe = load_file(tmp_path / PROBE_FILE)
    assert probe["pixel_values"].shape[:2] == (1, 1)
    assert {tensor.dtype for tensor in probe.values()} == {torch.float32}
    with torch.no_grad():
        expected = model.float().eval()(probe["pixel_values"]).logits
    torch.testing.assert_close(probe["logits"], expected)


def test_another_head_and_a_broken_model_differ_infinitely(tmp_path):
    model = SViTForImageClassification(tiny_config())
    write_probe(model, tmp_path)
    assert compare_with_probe(SViTForImageClassification(tiny_config(num_labels=3)), tmp_path) == float("inf")
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    assert compare_with_probe(model, tmp_path) == float("inf")


def test_nothing_to_compare_is_no_agreement(tmp_path):
    model = SViTForImageClassification(tiny_config())
    assert compare_with_probe(model, tmp_path) is None
    write_probe(model, tmp_path)
    assert compare_with_probe(SViTBackbone(tiny_config()), tmp_path) is None
