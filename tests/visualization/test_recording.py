# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a picture: one forward pass, any picture, a model that is left as it was, Grad-CAM by hand."""

import pytest
import torch
from PIL import Image
from tiny import tiny_config
from transformers import ConvNextConfig, ConvNextForImageClassification

from svit_hf import SViTBackbone, SViTForImageClassification, SViTImageProcessorPil, SViTModel
from svit_hf.errors import SViTError
from svit_hf.visualization import record


@pytest.fixture
def model():
    return SViTForImageClassification(tiny_config()).eval()


@pytest.mark.parametrize("reliance", [False, True], ids=["no-grad", "grad-cam"])
def test_one_forward_pass_and_the_model_is_as_before(model, reliance):
    model.train()
    model.requires_grad_(False)
    passes = []
    model.svit.embeddings.register_forward_hook(lambda *arguments: passes.append(1))
    running_mean = model.svit.pooler.batch_norm.running_mean.clone()

    recording = record(model, Image.new("RGB", (80, 60), "teal"), reliance=reliance)

    assert len(passes) == 1
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.svit.pooler.batch_norm.running_mean.equal(running_mean)
    # Transformers leaves hooks of its own on other layers
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (recording.reliance is not None) == reliance


def test_recording_is_what_the_model_returns(model):
    pixel_values = torch.randn(1, 3, 72, 56)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(pixel_values, output_attentions=True, output_associations=True)

    recording = record(model, pixel_values)

    assert recording.probabilities.allclose(outputs.logits[0].softmax(-1))
    assert recording.target == int(outputs.logits.argmax())
    with_super_tokens = [layer for layer in recording.layers if layer.association is not None]
    for layer, expected in zip(recording.layers, outputs.attentions, strict=True):
        assert layer.attention.equal(expected[0])
    for layer, expected in zip(with_super_tokens, outputs.associations, strict=True):
        assert layer.association.equal(expected[0])
    assert [(layer.grid, layer.super_token_grid) for layer in with_super_tokens] == [
        ((18, 14), (5, 4)),
        ((9, 7), (5, 4)),
        ((9, 7), (5, 4)),
    ]


@pytest.mark.parametrize(("label", "stage"), [(None, -1), ("LABEL_3", 2)], ids=["likeliest", "named-class"])
def test_reliance_is_grad_cam(model, label, stage):
    pixel_values = torch.randn(1, 3, 96, 64)
    outputs = model(pixel_values, output_hidden_states=True)
    # of the stem and every stage
    features = outputs.hidden_states[-1 if stage == -1 else stage]
    target = int(outputs.logits.argmax()) if label is None else 3
    (gradient,) = torch.autograd.grad(outputs.logits[0, target], features)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].relu().detach()

    recording = record(model, pixel_values, reliance=True, label=label, reliance_stage=stage)

    assert expected.max() > 0
    assert recording.target == target
    assert torch.allclose(recording.reliance, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("size", "places"), [((96, 128), (3, 4)), ((95, 32), (12, 4)), ((32, 32), (4, 4))])
def test_reliance_tells_where(model, size, places):
    assert record(model, torch.randn(3, *size), reliance=True).reliance.shape == places


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_reliance_where_gradients_are_switched_off(model, without_gradients):
    expected = record(model, Image.new("RGB", (64, 64), "teal"), reliance=True).reliance

    with without_gradients():
        found = record(model, Image.new("RGB", (64, 64), "teal"), reliance=True).reliance
    assert found.equal(expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_view_is_what_the_model_saw(model, mode):
    picture = Image.new(mode, (90, 45))
    processor = SViTImageProcessorPil(size={"height": 40, "width": 80}, crop_pct=1.0)

    recording = record(model, picture, processor)
    assert (recording.view.size, recording.view.mode) == ((80, 40), "RGB")
    assert recording.layers[0].grid == (10, 20)


def test_view_has_the_colours_of_the_picture(model):
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    picture = Image.fromarray(pixels)

    # prepared by the official preprocessing at the size of the config, 64, from which only 224/256 are cut
    whole = record(model, picture, SViTImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0))
    assert whole.view.tobytes() == picture.tobytes()
    assert record(model, picture).view.size == (64, 64)


def test_exif_orientation_is_applied(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 120)).save(tmp_path / "turned.jpg", exif=exif)

    processor = SViTImageProcessorPil(size={"height": 32, "width": 64}, crop_pct=1.0)
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert record(model, picture, processor).view.size == (64, 32)


@pytest.mark.parametrize("kind", [SViTModel, SViTBackbone])
def test_models_without_a_classifier(kind):
    headless = kind(tiny_config()).eval()
    recording = record(headless, torch.randn(3, 64, 64))

    assert recording.probabilities is None
    assert len(recording.layers) == 5
    with pytest.raises(SViTError, match=f"`model` is a {kind.__name__}, which has no classifier"):
        record(headless, torch.randn(3, 64, 64), reliance=True)


def test_what_cannot_be_recorded_is_refused(model):
    convnext = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))
    with pytest.raises(SViTError, match="`model` is of the kind 'convnext'"):
        record(convnext, torch.randn(3, 64, 64))
    with pytest.raises(SViTError, match="`label` is 'cat'; the classes are LABEL_0"):
        record(model, torch.randn(3, 64, 64), label="cat")
    with pytest.raises(SViTError, match="`reliance_stage` is 5; the model has the stages 1 to 4"):
        record(model, torch.randn(3, 64, 64), reliance=True, reliance_stage=5)
    with pytest.raises(ValueError, match=r"`image` has the shape \(2, 3, 64, 64\)"):
        record(model, torch.randn(2, 3, 64, 64))
