# SPDX-License-Identifier: Apache-2.0
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from other_vision_transformers import LAYOUT, MODELS, make
from PIL import Image
from rank_launch import Launch, assert_same_run, log_of
from recipe_changes import changed
from safetensors.torch import load_file
from tiny import tiny_config
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from svit_hf import SViTImageProcessorPil, SViTModel
from svit_hf.errors import SViTError, TrainingInterruptedError
from svit_hf.training import loop
from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.distillation import (
    Features,
    FeatureTeacher,
    StudentOutput,
    Teacher,
    make_teacher,
    sha256_of_tensors,
)
from svit_hf.training.options import DistillationOptions
from svit_hf.training.train import train


pytestmark = pytest.mark.usefixtures("no_curves")

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]])
CPU = torch.device("cpu")
# of pixels from 0 to 255, which processors of images round after resizing
NORMALIZATION_TOLERANCE = 1e-5
# sums of two micro-batches, added by the optimizer or in order; measured: 2e-8
SUM_TOLERANCE = 1e-6
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 9}
# besides those of `other_vision_transformers.py`; all look at 24 pixels
OTHER_MODELS = {
    "svit": lambda: SViTModel(tiny_config()),
    # 12x12 patches that become 6x6
    "swin": lambda: SwinModel(
        SwinConfig(image_size=24, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=3)
    ),
    "clip": lambda: CLIPModel(
        CLIPConfig(text_config=TEXT, vision_config=LAYOUT | {"image_size": 24, "patch_size": 4}, projection_dim=8)
    ),
}


class Oracle(nn.Module):
    """Answer with the mean of each channel."""

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values.mean(dim=(2, 3)))


def teacher(**options):
    return Teacher(Oracle(), DistillationOptions(teacher="oracle", **options), torch.full((3,), 2.0), torch.ones(3))


class TestAnswers:
    def test_teacher_sees_its_own_normalisation(self):
        pixel_values = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(teacher()(pixel_values), 2 * pixel_values.mean(dim=(2, 3)) + 1)

    def test_soft_distillation_is_the_divergence_of_softened_probabilities(self):
        answers = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        loss = teacher(weight=0.25, temperature=2.0).mix(torch.tensor(8.0), LOGITS, answers)
        theirs, ours = (answers / 2).softmax(-1), (LOGITS / 2).softmax(-1)
        divergence = (theirs * (theirs / ours).log()).sum(-1).mean()
        torch.testing.assert_close(loss, 0.75 * 8 + 0.25 * 4 * divergence)

    def test_hard_distillation_is_cross_entropy_with_the_first_choice(self):
        answers = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        loss = teacher(kind="hard", weight=0.5).mix(torch.tensor(8.0), LOGITS, answers)
        torch.testing.assert_close(loss, 4 + 0.5 * F.cross_entropy(LOGITS, torch.tensor([1, 2])))

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    def test_only_the_student_gets_gradients(self, kind):
        logits = LOGITS.clone().requires_grad_()
        pixel_values = torch.randn(2, 3, 4, 4, requires_grad=True)
        distiller = teacher(kind=kind)
        distiller.mix(torch.tensor(0.0), logits, distiller(pixel_values)).backward()
        assert logits.grad.abs().sum() > 0
        assert pixel_values.grad is None


def save_teacher(model, folder, size=24, **changes):
    """Save a model, and a processor that is another one than that of the student."""
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.3, 0.2],
        "size": {"height": size, "width": size},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | changes))
    return folder


def feature_teacher(folder, label_names=(), **options):
    options = DistillationOptions(teacher=str(folder), kind="features", **options)
    return make_teacher(options, label_names, SViTImageProcessorPil(), CPU)


@pytest.fixture
def vit(tmp_path):
    return save_teacher(make("vit"), tmp_path / "vit")


class TestFeatures:
    @pytest.mark.parametrize("name", [*MODELS, *OTHER_MODELS])
    def test_are_class_token_or_pooled_output_and_patches_in_rows(self, name, tmp_path):
        model = make(name) if name in MODELS else OTHER_MODELS[name]().eval()
        teacher = feature_teacher(save_teacher(model, tmp_path / name))
        pixel_values = torch.randn(2, 3, 24, 24)
        found = teacher(pixel_values)
        outputs = getattr(model, "vision_model", model)(pixel_values=teacher.see(pixel_values))
        states = outputs.last_hidden_state
        pooled = outputs.pooler_output if name in ("siglip", "svit", "swin") else states[:, 0]
        torch.testing.assert_close(found.pooled, pooled)
        if name == "svit":
            torch.testing.assert_close(found.patches, states)
            return
        assert found.patches.shape == (2, 16, 6, 6)
        for row, column in ((0, 0), (0, 5), (3, 2), (5, 5)):
            expected = states[:, states.shape[1] - 36 + 6 * row + column]
            torch.testing.assert_close(found.patches[:, :, row, column], expected)

    @pytest.mark.parametrize("size", [24, 32])
    def test_are_of_what_the_image_processor_of_the_teacher_gives(self, vit, size):
        theirs = AutoImageProcessor.from_pretrained(vit, backend="pil")
        ours = SViTImageProcessorPil(size={"shortest_edge": size}, crop_pct=1.0)
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        if size == 32:
            # what two ways of resizing agree on
            pixels[:] = np.linspace(0, 255, size).astype(np.uint8)[:, None]
        picture = Image.fromarray(pixels)
        seen = feature_teacher(vit).see(ours(picture, return_tensors="pt")["pixel_values"])
        expected = theirs(picture, return_tensors="pt")["pixel_values"]
        assert seen.shape == (1, 3, 24, 24)
        # a step of 256 in the smallest deviation, where pixels are rounded after resizing
        tolerance = NORMALIZATION_TOLERANCE if size == 24 else 2 / 255 / 0.2
        torch.testing.assert_close(seen[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=tolerance)

    def test_loss_is_the_mean_of_two_distances_of_directions(self, vit):
        answers = Features(torch.randn(2, 16), torch.randn(2, 16, 6, 6))
        teacher = feature_teacher(vit, weight=0.25)
        same = StudentOutput(LOGITS, 3 * answers.pooled, 0.1 * answers.patches)
        torch.testing.assert_close(teacher.loss(same, answers), torch.tensor(0.0))
        torch.testing.assert_close(teacher.mix(torch.tensor(8.0), same, answers), torch.tensor(6.0))
        opposite = StudentOutput(LOGITS, -answers.pooled, answers.patches)
        torch.testing.assert_close(teacher.loss(opposite, answers), torch.tensor(1.0))
        opposite = StudentOutput(LOGITS, answers.pooled, -answers.patches)
        torch.testing.assert_close(teacher.loss(opposite, answers), torch.tensor(1.0))

    def test_map_of_another_size_is_resized_to_that_of_the_student(self, vit):
        teacher = feature_teacher(vit)
        # the upper half one direction, the lower another
        patches = torch.zeros(1, 16, 6, 6)
        patches[:, 0, :3], patches[:, 1, 3:] = 1.0, 1.0
        for size in (2, 12):
            student = F.interpolate(patches, size=(size, size), mode="nearest")
            ones = torch.ones(1, 16)
            distance = teacher.loss(StudentOutput(LOGITS, ones, student), Features(ones, patches))
            assert distance < 0.03
            turned = StudentOutput(LOGITS, ones, student.transpose(2, 3))
            assert teacher.loss(turned, Features(ones, patches)) > 0.15

    def test_pooler_without_weights_is_no_obstacle_where_there_is_a_class_token(self, tmp_path):
        config = ViTConfig(**LAYOUT, image_size=24, patch_size=4, num_labels=3)
        folder = save_teacher(ViTForImageClassification(config), tmp_path / "classifier")
        digests = {feature_teacher(folder).sha256 for _ in range(2)}
        # a random pooler would have others
        assert len(digests) == 1

    def test_digest_depends_on_values_alone(self):
        first, second = torch.randn(3, 4), torch.arange(3)
        assert sha256_of_tensors([first, second]) == sha256_of_tensors([second, first.clone()])
        other = first.clone()
        other[2, 3] += 1e-6
        assert sha256_of_tensors([other, second]) != sha256_of_tensors([first, second])


class TestRefusals:
    def test_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(SViTError, match=r"`distillation.teacher` is .*nowhere', which cannot be loaded"):
            feature_teacher(tmp_path / "nowhere")

    def test_model_of_text(self, tmp_path):
        folder = save_teacher(BertModel(BertConfig(**TEXT)), tmp_path / "bert")
        with pytest.raises(SViTError, match=r"a BertModel, which cannot look at an image of 24 x 24 pixels alone"):
            feature_teacher(folder)

    def test_model_without_a_map(self, tmp_path):
        config = ViTMAEConfig(**LAYOUT, image_size=24, patch_size=4)
        with pytest.raises(SViTError, match=r"a ViTMAEModel, whose last hidden state has the shape \(1, 10, 16\)"):
            feature_teacher(save_teacher(ViTMAEModel(config), tmp_path / "mae"))

    def test_size_that_is_no_multiple_of_the_patch(self, vit):
        message = r"`distillation.image_size` is 30; it has to be a multiple of the 4 pixels of a patch .*such as 28\."
        with pytest.raises(SViTError, match=message):
            feature_teacher(vit, image_size=30)
        assert feature_teacher(vit, image_size=28)(torch.zeros(1, 3, 24, 24)).patches.shape == (1, 16, 7, 7)

    def test_processor_that_does_something_else(self, tmp_path):
        folder = save_teacher(make("vit"), tmp_path / "vit", do_rescale=False)
        with pytest.raises(SViTError, match=r"whose ViTImageProcessor\w* does something else to images"):
            feature_teacher(folder)

    def test_weights_that_are_not_there(self, vit):
        state = load_file(vit / "model.safetensors")
        assert state.pop("layernorm.weight").shape == (16,)
        (vit / "model.safetensors").unlink()
        torch.save(state, vit / "pytorch_model.bin")
        with pytest.raises(SViTError, match=r"lacks 1 of the model, such as layernorm\.weight"):
            feature_teacher(vit)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"model__freeze_backbone": True}, "`model.freeze_backbone` is True; with `distillation.kind` 'features'"),
            ({"run__parallelism": "fsdp2"}, "`run.parallelism` is 'fsdp2'; with `distillation.kind` 'features'"),
        ],
    )
    def test_what_features_do_not_go_with(self, recipe, tmp_path, values, message):
        with pytest.raises(SViTError, match=message):
            train(changed(recipe, **values), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_student_that_is_no_svit(self, recipe, tmp_path):
        student = nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(SViTError, match="'features', which is for SViT classifiers; this is a Sequential"):
            train(recipe, tmp_path / "run", model=student)


@pytest.fixture
def recipe(toy_recipe, vit):
    """Return a recipe with everything that there is: a stream, mixing, and updates of two micro-batches."""
    return changed(
        toy_recipe,
        distillation={"teacher": str(vit), "kind": "features", "weight": 0.5, "temperature": 1.0, "image_size": 0},
        data__streaming=True,
        data__shuffle_block=8,
        optimization__device_batch_size=8,
        run__evaluate_every_epochs=0,
    )


def projections_of(run_dir):
    return torch.load(checkpoints_of(run_dir)[-1] / "optimizer.pt", weights_only=True)["projections"]


class TestRuns:
    def test_features_get_nearer_and_the_model_has_no_projection(self, recipe, tmp_path, capsys):
        # nothing but the distance of features is learnt, of images as they are
        values = {"distillation__weight": 1.0, "mixing__mixup_alpha": 0.0, "mixing__cutmix_alpha": 0.0}
        values |= {"optimization__epochs": 4, "run__precision": "bf16"}
        report = train(changed(recipe, **values), tmp_path / "run")
        losses = [row["loss"] for row in log_of(tmp_path / "run")]
        assert losses[0] > 0.7
        assert losses[-1] < 0.3
        assert "features of ViTModel, 0.01 M parameters" in capsys.readouterr().err
        assert report["teacher"] == {
            "sha256": feature_teacher(recipe.distillation.teacher).sha256,
            "revision": None,
        }
        assert report["teacher"]["sha256"] in (tmp_path / "run" / "model" / "README.md").read_text()
        saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
        _, info = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
        assert not any(info.values())
        assert not [name for name in saved if "projections" in name]
        assert report["num_parameters"] == sum(
            value.numel()
            for name, value in saved.items()
            if not name.endswith(("running_mean", "running_var", "tracked"))
        )
        # as much as channels of the student and the teacher make
        assert {name: tuple(value.shape) for name, value in projections_of(tmp_path / "run").items()} == {
            "pooled.weight": (16, 32),
            "pooled.bias": (16,),
            "patches.weight": (16, 24),
            "patches.bias": (16,),
        }

    def test_stopped_run_goes_on_bit_for_bit_with_this_teacher_alone(self, recipe, vit, tmp_path, monkeypatch):
        train(recipe, tmp_path / "whole")
        updates = loop.Run._train_one_update

        def stop_at_four(self, batches):
            if self.progress.update == 4:
                signal.raise_signal(signal.SIGTERM)
            updates(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(loop.Run, "_train_one_update", stop_at_four)
            with pytest.raises(TrainingInterruptedError):
                train(recipe, tmp_path / "stopped")
        before = (vit / "model.safetensors").read_bytes()
        make("vit").save_pretrained(vit)
        with pytest.raises(SViTError, match=r"distillation.teacher: weights with the SHA-256 .* there, .* here"):
            train(recipe, tmp_path / "stopped")
        (vit / "model.safetensors").write_bytes(before)
        train(recipe, tmp_path / "stopped")
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")
        torch.testing.assert_close(
            projections_of(tmp_path / "whole"), projections_of(tmp_path / "stopped"), rtol=0, atol=0
        )
        # the optimizer has no place for the projections of another teacher
        for values in (
            {"distillation__teacher": ""},
            {"distillation__teacher": str(save_teacher(SViTModel(tiny_config()), tmp_path / "svit"))},
        ):
            with pytest.raises(SViTError, match=r"projections from 32 to 16 channels and from 24 to 16 channels for"):
                train(changed(recipe, **values), tmp_path / "stopped", resume_changed=True)

    def test_micro_batches_added_in_order_train_projections_too(self, recipe, tmp_path):
        train(recipe, tmp_path / "run")
        train(changed(recipe, run__canonical_sums=True), tmp_path / "in_order")
        expected, found = (projections_of(tmp_path / name) for name in ("run", "in_order"))
        torch.testing.assert_close(expected, found, rtol=0, atol=SUM_TOLERANCE)

    @pytest.mark.campaign
    @pytest.mark.slow
    @pytest.mark.process
    def test_killed_ranks_go_on_bit_for_bit(self, toy_images, vit, tmp_path):
        settings = {"distillation__teacher": str(vit), "distillation__kind": "features"}
        for name, kill in (("whole", None), ("killed", 7)):
            if kill is not None:
                Launch(toy_images, tmp_path / name, **settings).kill_at(kill)
            output = Launch(toy_images, tmp_path / name, **settings).end()
            assert "done" in output, output
        assert_same_run(tmp_path / "whole", tmp_path / "killed")
        torch.testing.assert_close(
            projections_of(tmp_path / "whole"), projections_of(tmp_path / "killed"), rtol=0, atol=0
        )


def test_feature_teacher_trains_nothing_of_its_own(vit):
    teacher = feature_teacher(vit)
    assert isinstance(teacher, FeatureTeacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    pixel_values = torch.randn(1, 3, 24, 24, requires_grad=True)
    assert not teacher(pixel_values).patches.requires_grad
