# SPDX-License-Identifier: Apache-2.0
"""A tiny SViT, and the `Trainer` that teaches it the digits."""

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments, set_seed

from svit_hf.demo.progress import TrainingProgress
from svit_hf.evaluation.metrics import TopKAccuracy, rank_classes
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTForImageClassification


IMAGE_SIZE = 32
LAYOUT: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "hidden_sizes": [16, 32, 64, 96],
    "depths": [1, 1, 2, 1],
    "num_attention_heads": [1, 2, 4, 6],
    "super_token_sizes": [2, 2, 1, 1],
    "projection_dim": 256,
}
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.1


def make_processor() -> SViTImageProcessorPil:
    """Return what enlarges the digits and gives them the three channels that a model expects."""
    # the whole digit, without the margin that photographs have
    settings: dict[str, Any] = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "crop_pct": 1.0}
    return SViTImageProcessorPil(**settings)


def make_model(names: list[str], seed: int) -> SViTForImageClassification:
    """Return the model with random weights.

    Args:
        names: Names of the classes, in order.
        seed: Fixes the weights.
    """
    set_seed(seed)
    id2label = dict(enumerate(names))
    label2id = {name: label for label, name in id2label.items()}
    return SViTForImageClassification(SViTConfig(**LAYOUT, id2label=id2label, label2id=label2id))


def make_trainer(
    model: SViTForImageClassification,
    inputs: datasets.DatasetDict,
    output_dir: Path,
    *,
    epochs: int,
    seed: int,
) -> Trainer:
    """Return a trainer that shows its progress, measures accuracy, and saves nothing.

    It makes this process compute on the CPU with one thread. The model is too small to share: more threads win little
    on an idle machine, wait for each other on a busy one, and do not add up in the same order everywhere.

    Args:
        model: The model.
        inputs: What `prepare` returns.
        output_dir: A folder that `Trainer` makes; nothing of use is in it afterwards.
        epochs: Passes over the training digits.
        seed: Fixes the order of the digits.
    """
    num_steps = epochs * -(-len(inputs["train"]) // BATCH_SIZE)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP_SHARE * num_steps),
        seed=seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.set_num_threads(1)
    metric = TopKAccuracy()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        result: dict[str, float] = metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
        return result

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=inputs["train"],
        eval_dataset=inputs["test"],
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: rank_classes(logits),
        callbacks=[TrainingProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def prepare(digits: datasets.DatasetDict, processor: SViTImageProcessorPil) -> datasets.DatasetDict:
    """Turn images into pixel values, once and in memory: 22 MB. Larger data would be prepared batch by batch."""
    features = datasets.Features(
        {
            "label": digits["train"].features["label"],
            "pixel_values": datasets.Array3D((3, IMAGE_SIZE, IMAGE_SIZE), "float32"),
        }
    )
    inputs: datasets.DatasetDict = digits.map(
        lambda batch: {"pixel_values": processor(batch["image"], return_tensors="np")["pixel_values"]},
        batched=True,
        remove_columns="image",
        features=features,
        keep_in_memory=True,
    )
    return inputs.with_format("torch")


def settings_of(arguments: TrainingArguments) -> dict[str, object]:
    """Return what a reader has to know to repeat the training, by name."""
    return {
        "initial weights": "random",
        "epochs": round(arguments.num_train_epochs),
        "batch size": arguments.per_device_train_batch_size,
        "optimizer": f"AdamW, weight decay {arguments.weight_decay}",
        "learning rate": f"{arguments.learning_rate}, cosine",
        "warm-up": f"linear, {WARMUP_SHARE:.0%} of the steps",
        "seed": arguments.seed,
        "device": "CPU, one thread",
    }
