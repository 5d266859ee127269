# SPDX-License-Identifier: Apache-2.0
"""8-bit copies compute nearly what they were made of, in 8 bits, and refuse what folded ones refuse."""

import copy

import pytest
import torch
from tiny import tiny_config
from torch import nn

from svit_hf import SViTBackbone, SViTForImageClassification, SViTModel
from svit_hf.errors import SViTError
from svit_hf.extras import missing_packages
from svit_hf.inference import fold_for_inference, quantize_for_inference
from svit_hf.inference.quantization import PointwiseLinear


needs_torchao = pytest.mark.skipif(bool(missing_packages("quantization")), reason="torchao is not installed")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SViTForImageClassification(tiny_config()).train()
    for _ in range(3):
        # statistics of batch norms that are not the identity
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_computes_the_convolution_without_a_copy(bias):
    convolution = nn.Conv2d(6, 4, kernel_size=1, bias=bias)
    images = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        mixed = PointwiseLinear(convolution)(images)
        torch.testing.assert_close(mixed, convolution(images))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@needs_torchao
class TestQuantized:
    def test_logits_change_by_8_bits(self, model):
        images = torch.randn(2, 3, 75, 101)
        with torch.no_grad():
            expected = model(images).logits
            found = quantize_for_inference(model)(images).logits
        # 0.9 % were seen; in float32 it would be 1e-6
        assert 1e-3 < (found - expected).norm() / expected.norm() < 0.05

    @pytest.mark.parametrize("model_class", [SViTModel, SViTBackbone])
    def test_feature_maps_change_by_8_bits(self, model_class):
        model = model_class(tiny_config()).eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected, found = (each(images)[0][0] for each in (model, quantize_for_inference(model)))
        assert 1e-3 < (found - expected).norm() / expected.norm() < 0.05

    def test_every_projection_is_8_bits_and_nothing_else(self, model):
        quantized = quantize_for_inference(model)
        pointwise = {name for name, module in model.named_modules() if getattr(module, "kernel_size", 0) == (1, 1)}
        assert len(pointwise) == 4 * 5 + 1
        linear = {name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)}
        assert linear == pointwise | {"classifier"}
        for name, parameter in quantized.named_parameters():
            is_8_bits = getattr(parameter, "qdata", parameter).dtype == torch.int8
            assert is_8_bits == (name.removesuffix(".weight") in linear), name

    def test_projections_that_a_model_lacks_are_passed_over(self):
        model, images = SViTForImageClassification(tiny_config(use_projection=False)).eval(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected, found = (each(images).logits for each in (model, quantize_for_inference(model)))
        assert 1e-3 < (found - expected).norm() / expected.norm() < 0.05

    def test_model_is_left_alone_and_the_copy_is_for_inference_alone(self, model):
        before = copy.deepcopy(model.state_dict())
        quantized = quantize_for_inference(model)
        assert type(quantized) is type(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        for forbidden in (quantized.train, quantized.requires_grad_, lambda: quantized.save_pretrained("folder")):
            with pytest.raises(SViTError, match="it is for inference alone"):
                forbidden()

    def test_what_cannot_be_quantized_is_said(self, model):
        with pytest.raises(SViTError, match=r"was it folded before\?"):
            quantize_for_inference(fold_for_inference(model))
        with pytest.raises(SViTError, match=r"`model` is in torch\.bfloat16"):
            quantize_for_inference(copy.deepcopy(model).to(torch.bfloat16))
        with pytest.raises(SViTError, match="`model` is a Linear"):
            quantize_for_inference(nn.Linear(2, 2))
        other = copy.deepcopy(model)
        other.svit.stages[0].layers[0].attention.self_attention.qkv = nn.Linear(8, 24)
        with pytest.raises(SViTError, match="`qkv` of an SViTSelfAttention is no plain"):
            quantize_for_inference(other)


def test_missing_torchao_is_named(model, monkeypatch):
    monkeypatch.setattr("svit_hf.inference.quantization.missing_packages", lambda extra: ["torchao"])
    with pytest.raises(SViTError, match=r"needs torchao; install it with: pip install \"svit-hf\[quantization\]\""):
        quantize_for_inference(model)
