# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with Transformers' own Trainer: learning, resuming, accumulating, choosing the best, new labels."""

import pytest
import torch
from tiny import tiny_config
from transformers import Trainer, TrainingArguments

from svit_hf import SViTForImageClassification


LABELS = ["red", "green", "blue"]


def noisy_colours(count, seed):
    """Return 32x32 images of noise, in which one colour is brighter than the others; that colour is the label."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 1.0
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels.tolist(), strict=True)]


def stack(examples):
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that makes a Trainer for a model; `arguments` are TrainingArguments."""

    def make(model, compute_metrics=accuracy, folder="run", **arguments):
        defaults = {
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
        }
        return Trainer(
            model,
            TrainingArguments(output_dir=str(tmp_path / folder), **(defaults | arguments)),
            train_dataset=noisy_colours(24, seed=1),
            eval_dataset=noisy_colours(30, seed=2),
            compute_metrics=compute_metrics,
        )

    return make


def classifier(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SViTForImageClassification(tiny_config(image_size=32, **({"num_labels": 3} | kwargs)))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_fine_tuning_with_new_labels_learns(make_trainer, tmp_path):
    model = classifier(num_labels=5)
    model.set_labels(LABELS)
    trainer = make_trainer(model, num_train_epochs=6)
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    assert before < 0.7
    assert after > 0.9

    trainer.save_model(tmp_path / "saved")
    loaded = SViTForImageClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert make_trainer(loaded).evaluate()["eval_accuracy"] == after


def test_resumed_run_ends_as_the_uninterrupted_one(make_trainer, tmp_path):
    # dropout, so that the state of the random numbers has to be right too
    whole, resumed = (classifier(seed, hidden_dropout_prob=0.1) for seed in (0, 1))
    make_trainer(whole, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    trainer = make_trainer(resumed, folder="resumed")
    trainer.train(resume_from_checkpoint=str(checkpoint))

    assert trainer.state.global_step == 6
    assert len(logged(trainer, "loss")) == 6
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False], ids=["batch-norm-frozen", "batch-norm-training"])
def test_two_small_batches_count_as_one_only_with_frozen_batch_norm(make_trainer, frozen):
    runs = []
    for accumulated in (1, 2):
        model = classifier()
        model.freeze_batch_norm(frozen)
        trainer = make_trainer(
            model, per_device_train_batch_size=8 // accumulated, gradient_accumulation_steps=accumulated
        )
        trainer.train()
        runs.append(torch.tensor([logged(trainer, "loss"), logged(trainer, "grad_norm")], dtype=torch.float64))
    assert runs[0].shape == (2, 6)
    # the logged loss has four decimals
    assert torch.allclose(*runs, rtol=1e-3, atol=2e-4) == frozen


def test_weight_decay_leaves_out_norms_and_biases_but_not_layer_scale(make_trainer):
    # Trainer goes by name and by nn.LayerNorm, so of what is 1-D only layer scale is decayed; so does the official
    # training, which exempts what is 1-D, since its layer scale has the shape (1, C, 1, 1)
    model = classifier()
    decayed = set(make_trainer(model).get_decay_parameter_names(model))
    assert decayed == {
        name for name, parameter in model.named_parameters() if parameter.ndim > 1 or "layer_scale" in name
    }
    assert {name.rpartition(".")[2] for name in decayed} == {"weight", "scale"}
