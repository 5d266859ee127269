# SPDX-License-Identifier: Apache-2.0
"""Folded models compute what they were folded from, and refuse what they cannot do."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from tiny import tiny_config
from torch import nn
from transformers import AutoModelForImageClassification, pipeline

from svit_hf import SViTBackbone, SViTConfig, SViTForImageClassification, SViTImageProcessorPil, SViTModel
from svit_hf.errors import SViTError
from svit_hf.inference import fold_for_inference
from svit_hf.model.modeling_svit import SViTDepthwiseResidual


# relative errors in norm, float32 against float32; measured on a CPU with torch 2.13: at most 5.3e-7
TOLERANCE = 1e-5

REQUESTS = {f"output_{name}": True for name in ("hidden_states", "super_tokens", "associations", "attentions")}


def pixels(batch_size=2, height=64, width=64):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def trained_like(model):
    """Give norms, biases and layer scales the values, far from 0 and 1, that training gives them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=2.0)
                module.running_var.uniform_(0.02, 8.0)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.3, 2.0)
                module.bias.normal_(std=0.5)
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(-1.0, 1.0)
    return model.eval()


def tensors_by_name(outputs):
    """Flatten model outputs: `{"logits": ..., "hidden_states.0": ..., ...}`."""
    named = {}
    for name, value in outputs.items():
        for index, tensor in enumerate(value if isinstance(value, tuple) else [value]):
            named[f"{name}.{index}"] = tensor
    return named


def assert_folded_equals(model, **inputs):
    with torch.no_grad():
        expected = tensors_by_name(model(**inputs))
        got = tensors_by_name(fold_for_inference(model)(**inputs))
    assert got.keys() == expected.keys()
    errors = {name: ((got[name] - value).norm() / value.norm()).item() for name, value in expected.items()}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return trained_like(SViTForImageClassification(tiny_config()))


class TestFoldedEqualsOriginal:
    @pytest.mark.parametrize("model_class", [SViTForImageClassification, SViTModel, SViTBackbone])
    def test_every_output_of_every_class(self, model_class):
        model = trained_like(model_class(tiny_config(out_features=["stem", "stage2", "stage4"])))
        model.set_attn_implementation("eager")
        assert_folded_equals(model, pixel_values=pixels(), **REQUESTS)

    @pytest.mark.parametrize("sampler", ["soft", "soft_masked"])
    @pytest.mark.parametrize("size", [(64, 64), (75, 101)], ids=["whole cells", "padded"])
    def test_any_cells_and_sizes(self, size, sampler):
        config = tiny_config(
            super_token_sizes=[[4, 2], [1, 3], 2, 1],
            num_sampling_iterations=[1, 2, 1, 1],
            super_token_sampler=sampler,
            use_layer_scale=[True, False, True, False],
        )
        model = trained_like(SViTForImageClassification(config))
        assert_folded_equals(model, pixel_values=pixels(3, *size), **REQUESTS | {"output_attentions": False})

    def test_without_pooler_and_without_bias_of_qkv(self):
        model = trained_like(SViTModel(tiny_config(qkv_bias=False), add_pooling_layer=False))
        assert_folded_equals(model, pixel_values=pixels())

    def test_labels_and_their_loss(self, classifier):
        assert_folded_equals(classifier, pixel_values=pixels(), labels=torch.tensor([0, 3]))

    @pytest.mark.slow
    def test_published_layout(self):
        torch.manual_seed(0)
        model = trained_like(SViTForImageClassification(SViTConfig.small(num_labels=1000)))
        assert_folded_equals(model, pixel_values=pixels(1, 224, 224))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def test_half_precision(self, classifier, dtype):
        with torch.no_grad():
            expected = classifier(pixels()).logits
            folded = fold_for_inference(classifier.to(dtype))
            logits = folded(pixels()).logits
        assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
        assert logits.dtype == dtype
        assert ((logits - expected).norm() / expected.norm()).item() < 16 * torch.finfo(dtype).eps

    def test_everything_that_folds_is_gone(self, classifier):
        folded = fold_for_inference(classifier)
        norms = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms == [f"svit.embeddings.layers.{index}.batch_norm" for index in range(4)]
        names = {type(module).__name__ for module in folded.modules()}
        assert "SViTLayerScale" not in names
        residuals = [module for module in folded.modules() if isinstance(module, SViTDepthwiseResidual)]
        assert len(residuals) == 2 * sum(folded.config.depths)
        assert not any(residual.has_shortcut for residual in residuals)


class TestOriginal:
    def test_is_untouched_and_shares_nothing(self, classifier):
        classifier.train()
        classifier(pixels(), labels=torch.tensor([0, 1])).loss.backward()
        before = copy.deepcopy(classifier.state_dict())
        folded = fold_for_inference(classifier)
        with torch.no_grad():
            for tensor in (*folded.parameters(), *folded.buffers()):
                tensor.zero_()
        folded.config.num_labels = 7
        assert classifier.training
        assert classifier.config.num_labels == 5
        assert all(parameter.grad is not None for parameter in classifier.parameters())
        torch.testing.assert_close(dict(classifier.state_dict()), dict(before), rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in folded.parameters())

    def test_that_has_recorded_outputs_before(self, classifier):
        classifier(pixels(), output_hidden_states=True)
        assert_folded_equals(classifier, pixel_values=pixels(), output_hidden_states=True)

    def test_keeps_what_was_chosen_for_the_object(self, classifier):
        classifier.set_attn_implementation("eager")
        classifier.set_labels(["a", "b", "c"])
        folded = fold_for_inference(classifier)
        assert folded.config._attn_implementation == "eager"
        assert folded.config.id2label[2] == "c"
        folded.set_attn_implementation("sdpa")
        assert classifier.config._attn_implementation == "eager"
        with torch.no_grad():
            torch.testing.assert_close(folded(pixels()).logits, classifier(pixels()).logits, rtol=1e-4, atol=1e-4)


class TestUse:
    def test_pipeline(self, classifier, monkeypatch):
        complaints = []
        monkeypatch.setattr("transformers.pipelines.base.logger.error", complaints.append)
        picture = Image.radial_gradient("L").convert("RGB")
        processor = SViTImageProcessorPil(size={"shortest_edge": 64})
        expected, got = (
            pipeline("image-classification", model=model, image_processor=processor, device="cpu")(picture)
            for model in (classifier, fold_for_inference(classifier))
        )
        assert [row["label"] for row in got] == [row["label"] for row in expected]
        assert [row["score"] for row in got] == pytest.approx([row["score"] for row in expected], rel=1e-4)
        assert complaints == []

    def test_after_loading_by_an_auto_class(self, classifier, tmp_path):
        classifier.save_pretrained(tmp_path)
        loaded = fold_for_inference(AutoModelForImageClassification.from_pretrained(tmp_path))
        assert type(loaded) is SViTForImageClassification
        with torch.no_grad():
            torch.testing.assert_close(loaded(pixels()).logits, classifier(pixels()).logits, rtol=1e-4, atol=1e-4)

    def test_copies_and_pickles_refuse_too(self, classifier):
        folded = fold_for_inference(classifier)
        with torch.no_grad():
            expected = folded(pixels()).logits
            for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
                torch.testing.assert_close(twin(pixels()).logits, expected, rtol=0, atol=0)
                assert twin.eval() is twin
                with pytest.raises(SViTError, match="cannot train"):
                    twin.train()


class TestRefusals:
    @pytest.mark.parametrize(
        ("use", "message"),
        [
            (lambda model: model.train(), "cannot train"),
            (lambda model: nn.ModuleList([model]).train(), "cannot train"),
            (lambda model: model.svit.train(mode=True), "cannot train"),
            (lambda model: model.save_pretrained("folder"), "cannot be saved"),
            (lambda model: model.svit.save_pretrained("folder"), "cannot be saved"),
            (lambda model: model.push_to_hub("name"), "cannot be pushed"),
            (lambda model: model.requires_grad_(), "cannot have gradients"),
            (lambda model: model(pixels().requires_grad_()), "cannot have gradients"),
            (lambda model: model(pixel_values=pixels().requires_grad_()), "cannot have gradients"),
        ],
    )
    def test_of_what_only_the_original_can(self, classifier, use, message):
        with pytest.raises(SViTError, match=f"{message}.*Use the model it was folded from"):
            use(fold_for_inference(classifier))

    def test_of_a_weight_that_shall_learn(self, classifier):
        folded = fold_for_inference(classifier)
        folded.classifier.weight.requires_grad_()
        with pytest.raises(SViTError, match="cannot have gradients"):
            folded(pixels())
        with torch.no_grad():
            assert folded(pixels()).logits.isfinite().all()

    def test_of_harmless_calls_never(self, classifier):
        folded = fold_for_inference(classifier)
        assert folded.eval() is folded.train(False) is folded.requires_grad_(False) is folded
        assert not folded(pixels()).logits.requires_grad

    def test_of_other_models(self):
        with pytest.raises(SViTError, match="`model` is a Linear; it has to be an SViTForImageClassification"):
            fold_for_inference(nn.Linear(2, 2))

    def test_of_folding_twice(self, classifier):
        with pytest.raises(SViTError, match="was it folded before"):
            fold_for_inference(fold_for_inference(classifier))

    def test_of_parametrized_weights(self, classifier):
        nn.utils.parametrizations.weight_norm(classifier.svit.stages[0].layers[0].mlp.fc1)
        with pytest.raises(
            SViTError, match=r"`fc1` of an SViTConvFFN is no plain nn\.Conv2d but a ParametrizedConv2d"
        ):
            fold_for_inference(classifier)

    def test_of_weights_that_are_elsewhere(self):
        with torch.device("meta"):
            model = SViTModel(tiny_config())
        with pytest.raises(SViTError, match="on the meta device or offloaded"):
            fold_for_inference(model)
