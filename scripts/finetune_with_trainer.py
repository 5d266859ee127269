#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fine-tune an SViT with Transformers' Trainer on a folder of parquet files, and print its accuracy.

    python scripts/finetune_with_trainer.py --model MODEL --data FOLDER --output-dir RUN

FOLDER has train.parquet and test.parquet with the columns `image` and `label`. `svit-hf train --recipe finetune` does
the same with augmentation, a moving average and exact resume; this is what Trainer alone gives.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, EvalPrediction, Trainer, TrainingArguments

from svit_hf import SViTForImageClassification
from svit_hf.evaluation.metrics import TopKAccuracy, rank_classes


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fine-tune, evaluate, print and return the metrics on the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of an SViT classifier")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    files = {split: str(options.data / f"{split}.parquet") for split in ("train", "test")}
    images = load_dataset("parquet", data_files=files)
    model = SViTForImageClassification.from_pretrained(options.model)
    model.set_labels(images["train"].features["label"].names)
    processor = AutoImageProcessor.from_pretrained(options.model)
    flips = np.random.default_rng(options.seed)

    def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pixels = processor(batch["image"], return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": batch["label"]}

    def augment(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prepared = prepare(batch)
        pixels = [image.flip(-1) if flips.random() < 0.5 else image for image in prepared["pixel_values"]]
        return prepared | {"pixel_values": pixels}

    metric = TopKAccuracy()

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        result: dict[str, float] = metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
        return result

    arguments = TrainingArguments(
        str(options.output_dir),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=options.seed,
        # the images have to be there when `prepare` is called
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=images["train"].with_transform(augment),
        eval_dataset=images["test"].with_transform(prepare),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: rank_classes(logits),
    )
    trainer.train()
    metrics: dict[str, float] = trainer.evaluate()
    trainer.save_model()
    processor.save_pretrained(options.output_dir)
    print(f"{metrics['eval_accuracy']:.2%} of {len(images['test'])} images, top-5 {metrics['eval_top5_accuracy']:.2%}")
    return metrics


if __name__ == "__main__":
    main()
