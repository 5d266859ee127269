# SPDX-License-Identifier: Apache-2.0
"""Models for clips: image weights load as they are, a still clip is its frame, and Transformers works with them."""

import pytest
import torch
from tiny import order_frames, tiny_config, tiny_video_config
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, Trainer, TrainingArguments

from svit_hf import (
    SViTForImageClassification,
    SViTForVideoClassification,
    SViTVideoConfig,
    SViTVideoModel,
)
from svit_hf.inference import fold_for_inference
from svit_hf.kernels.layers import layers_of
from svit_hf.model.modeling_svit import SViTDropPath, SViTSuperTokenAttention
from svit_hf.model.modeling_video_svit import SViTTemporalPositionEmbedding


# absolute, of logits that are about 2; worst case measured: 3.6e-7
STILL_TOLERANCE = 1e-5


@pytest.fixture
def image_model(tmp_path):
    model = SViTForImageClassification(tiny_config()).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
        model.classifier.weight.normal_()
    model.save_pretrained(tmp_path / "image")
    return model


class TestImageWeights:
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("is_trained", [False, True])
    def test_still_clip_gives_the_logits_of_the_image_model(self, image_model, tmp_path, is_trained, is_causal):
        fields = {"is_causal_in_time": True, "super_token_frames": [1, 1, 0, 1]} if is_causal else {}
        model, loading = SViTForVideoClassification.from_pretrained(
            tmp_path / "image", output_loading_info=True, **fields
        )
        assert not any(loading.values())
        if is_trained:
            order_frames(model)
        frames = torch.randn(2, 3, 75, 101)
        with torch.no_grad():
            expected = image_model(frames).logits
            for num_frames in (1, 2, 3, 8):
                clips = frames.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)
                torch.testing.assert_close(model(clips).logits, expected, rtol=0, atol=STILL_TOLERANCE)

    def test_attention_within_frames_averages_them(self, image_model, tmp_path):
        model = SViTForVideoClassification.from_pretrained(tmp_path / "image", super_token_frames=[0, 0, 0, 0])
        clip = torch.randn(1, 5, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(clip).logits[0], image_model(clip[0]).logits.mean(0))

    def test_loading_says_nothing(self, image_model, tmp_path, caplog):
        SViTForVideoClassification.from_pretrained(tmp_path / "image")
        assert caplog.text == ""


class TestTime:
    @pytest.mark.parametrize("stage", range(4))
    def test_frames_see_each_other_in_every_stage_that_says_so(self, stage):
        frames = [0, 0, 0, 0]
        frames[stage] = 2 if stage < 2 else 1
        model = SViTVideoModel(tiny_video_config(super_token_frames=frames)).eval()
        clip = torch.randn(1, 4, 3, 64, 64)
        changed = clip.clone()
        changed[:, 1] = 0
        with torch.no_grad():
            difference = model(clip).last_hidden_state - model(changed).last_hidden_state
        assert (difference.abs().amax((0, 2, 3, 4)) > 1e-6).tolist() == [True] * 4

    def test_order_counts_once_it_is_learned(self):
        model = SViTForVideoClassification(tiny_video_config(super_token_frames=[0, 0, 0, 0])).eval()
        clip = torch.randn(1, 4, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(clip.flip(1)).logits, model(clip).logits)
            order_frames(model)
            assert (model(clip.flip(1)).logits - model(clip).logits).norm() > 1e-3 * model(clip).logits.norm()

    def test_position_embedding_adds_what_changes(self):
        embedding = order_frames(torch.nn.Sequential(SViTTemporalPositionEmbedding(3)))[0]
        clip = torch.randn(2, 3, 3, 4, 5)
        output = embedding(clip.flatten(0, 1), 3).unflatten(0, (2, 3))
        since, until = embedding.weight.view(2, 3, 1, 1)
        first = clip[:, 0] + until * (clip[:, 1] - clip[:, 0])
        middle = clip[:, 1] + since * (clip[:, 1] - clip[:, 0]) + until * (clip[:, 2] - clip[:, 1])
        torch.testing.assert_close(output[:, 0], first)
        torch.testing.assert_close(output[:, 1], middle)

    def test_drop_path_drops_whole_clips(self):
        drop_path = SViTDropPath(0.5).train()
        kept = drop_path(torch.ones(64, 1, 1, 1), 4).view(16, 4)
        assert (kept == kept[:, :1]).all()
        assert set(kept.unique().tolist()) == {0.0, 2.0}


class TestTransformers:
    def test_auto_classes_load_what_was_saved(self, tmp_path):
        model = order_frames(SViTForVideoClassification(tiny_video_config())).eval()
        model.save_pretrained(tmp_path)
        assert type(AutoConfig.from_pretrained(tmp_path)) is SViTVideoConfig
        assert type(AutoModel.from_pretrained(tmp_path)) is SViTVideoModel
        loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
        clip = torch.randn(1, 4, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded(clip).logits, model(clip).logits)

    def test_outputs_have_their_shapes(self):
        model = SViTVideoModel(tiny_video_config()).eval()
        model.set_attn_implementation("eager")
        names = ("hidden_states", "attentions", "super_tokens", "associations")
        with torch.no_grad():
            outputs = model(torch.randn(2, 3, 3, 64, 64), **{f"output_{name}": True for name in names})
        assert outputs.last_hidden_state.shape == (2, 3, 24, 2, 2)
        assert [states.shape[:2] for states in outputs.hidden_states] == [(2, 3)] * 5
        assert [tokens.shape for tokens in outputs.super_tokens] == [(2, 8, 2, 4, 4)] + [(2, 12, 2, 4, 4)] * 2
        assert outputs.associations[0].shape == (2, 32, 32, 27)
        assert [weights.shape[-1] for weights in outputs.attentions] == [32, 32, 32, 16, 12]

    def test_one_clip_needs_no_batch(self):
        model = SViTForVideoClassification(tiny_video_config()).eval()
        clip = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(clip).logits, model(clip[None]).logits, rtol=0, atol=0)
            assert len(model(clip, return_dict=False)) == 1

    def test_every_parameter_learns_and_checkpointing_changes_nothing(self):
        clips, labels = torch.randn(2, 3, 3, 64, 64), torch.tensor([1, 3])
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = order_frames(SViTForVideoClassification(tiny_video_config())).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(clips, labels=labels).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
        torch.testing.assert_close(gradients[1], gradients[0])

    def test_trainer_trains(self, tmp_path):
        model = SViTForVideoClassification(tiny_video_config(batch_norm_momentum=0.5))
        clips = torch.randn(4, 2, 3, 32, 32)
        rows = [{"pixel_values": clip, "labels": index % 2} for index, clip in enumerate(clips)]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=8, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
        )
        Trainer(model, arguments, train_dataset=rows).train()
        weights = [module.weight for module in model.modules() if isinstance(module, SViTTemporalPositionEmbedding)]
        assert all(weight.abs().sum() > 0 for weight in weights)
        predicted = Trainer(model, arguments).predict(rows)
        assert (predicted.predictions.argmax(-1) == predicted.label_ids).all()


class TestCausal:
    @pytest.mark.parametrize("num_given", [1, 2])
    @pytest.mark.parametrize(
        "fields", [{}, {"num_sampling_iterations": [2, 1, 1, 1], "super_token_frames": [1, 1, 1, 0]}]
    )
    def test_frames_as_they_come_give_what_the_whole_clip_gives(self, fields, num_given):
        model = order_frames(SViTForVideoClassification(tiny_video_config(is_causal_in_time=True, **fields))).eval()
        clips, past = 2 * torch.randn(2, 6, 3, 75, 50), {}
        with torch.no_grad():
            states = model.svit(clips).last_hidden_state
            for last in range(num_given, 7, num_given):
                frames = clips[:, last - num_given : last]
                expected = model(clips[:, :last])
                outputs = model(frames, past=past, output_hidden_states=True)
                torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=STILL_TOLERANCE)
                latest = states[:, last - num_given : last]
                torch.testing.assert_close(outputs.hidden_states[-1], latest, rtol=0, atol=STILL_TOLERANCE)

    @pytest.mark.parametrize("stage", range(4))
    def test_frames_see_those_before_alone(self, stage):
        frames = [0, 0, 0, 0]
        frames[stage] = 1
        model = SViTVideoModel(tiny_video_config(super_token_frames=frames, is_causal_in_time=True)).eval()
        clip = torch.randn(1, 4, 3, 64, 64)
        changed = clip.clone()
        changed[:, 1] = 0
        with torch.no_grad():
            difference = model(clip).last_hidden_state - model(changed).last_hidden_state
        assert (difference.abs().amax((0, 2, 3, 4)) > 1e-6).tolist() == [False, True, True, True]

    def test_attention_ends_with_its_frame(self):
        model = SViTVideoModel(tiny_video_config(is_causal_in_time=True)).eval()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = model(torch.randn(2, 3, 3, 64, 64), output_attentions=True).attentions
        assert [weights.shape[-1] for weights in attentions] == [48, 48, 48, 16, 12]
        weights = attentions[-1].unflatten(-1, (3, 4)).unflatten(-3, (3, 4))  # (B, A, T, N, T, N)
        torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(2, 4, 3, 4))
        seen = weights.amin((0, 1, 3, 5)) > 0
        assert seen.tolist() == torch.ones(3, 3).tril().bool().tolist()

    def test_every_parameter_learns(self):
        model = order_frames(SViTForVideoClassification(tiny_video_config(is_causal_in_time=True))).train()
        model(torch.randn(2, 3, 3, 64, 64), labels=torch.tensor([1, 3])).loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


class TestSpeed:
    def test_folded_model_answers_the_same(self, image_model, tmp_path):
        model = order_frames(SViTForVideoClassification.from_pretrained(tmp_path / "image"))
        clip = torch.randn(1, 4, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(fold_for_inference(model)(clip).logits, model(clip).logits, rtol=0, atol=1e-5)

    def test_kernels_of_pictures_do_not_take_over(self):
        layers = layers_of(SViTForVideoClassification(tiny_video_config()))
        assert layers
        assert not any(isinstance(layer, SViTSuperTokenAttention) for layer in layers)


class TestBadInput:
    @pytest.mark.parametrize("shape", [(2, 0, 3, 64, 64), (3, 64, 64)])
    def test_shape_of_clips(self, shape):
        model = SViTForVideoClassification(tiny_video_config())
        with pytest.raises(ValueError, match=r"`pixel_values` has shape .* expected is \(batch, frames"):
            model(torch.zeros(shape))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_frames": 0}, "`num_frames` is 0; it has to be at least 1"),
            ({"super_token_frames": [2, 2]}, r"`super_token_frames` is \[2, 2\]; it needs 4 entries"),
            ({"super_token_frames": [2, -1, 0, 1]}, "has -1 for stage 2; .* any number above"),
            ({"super_token_frames": [2, 2, 2, 1]}, r"has 2 for stage 3; .* 1 \(among all frames\)"),
            (
                {"super_token_frames": [2, 1, 0, 1], "is_causal_in_time": True},
                "has 2 for stage 1; with `is_causal_in_time` allowed are 0",
            ),
            ({"attention_kinds": "global"}, "`attention_kinds` 'global'; over several frames there are only"),
            ({"super_token_sampler": "hard"}, "`super_token_sampler` is 'hard'; .* by 'soft' alone"),
        ],
    )
    def test_config(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            tiny_video_config(**kwargs)

    @pytest.mark.parametrize(("is_causal", "training"), [(False, False), (True, True)])
    def test_past_of_a_model_that_cannot_have_one(self, is_causal, training):
        model = SViTForVideoClassification(tiny_video_config(is_causal_in_time=is_causal)).train(training)
        with pytest.raises(ValueError, match=r"`past` is given, .* only a causal model in evaluation mode takes"):
            model(torch.randn(1, 1, 3, 64, 64), past={})
