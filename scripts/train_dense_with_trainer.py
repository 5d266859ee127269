#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train segmentation or detection with Transformers' Trainer, and print the metric on the test split.

    python scripts/train_dense_with_trainer.py --task semantic_segmentation --data FOLDER --output-dir RUN

FOLDER has the splits `train` and `test` in a layout that the task reads (docs/guides/segment_and_detect.md). Without
`--backbone` a small SViT starts from random weights. RUN gets the model, which loads where this package is not
installed, the numbers (metrics.json), and predictions drawn on pictures of the test split (predictions.png).
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from svit_hf import SViTConfig
from svit_hf.files import whole_file, write_text
from svit_hf.tasks import TASKS, DenseTask, task_class
from svit_hf.tasks.evaluation import NUM_DRAWN, contact_sheet
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.tasks.pictures import Augmentation
from svit_hf.tasks.task import TrainingExamples
from svit_hf.training.starting_model import TINY
from svit_hf.training.weights import WeightAverage


class Follow(TrainerCallback):
    """Callback that tells the examples which epoch it is, and averages the weights."""

    def __init__(self, examples: TrainingExamples, decay: float):
        self.examples, self.decay = examples, decay

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the average, where the model is by now."""
        self.average = WeightAverage(kwargs["model"], self.decay, warmup=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        self.examples.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average."""
        self.average.step(state.global_step - 1)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate, print and return the metrics on the test split."""
    options = parse(argv)
    rows = {split: task_class(options.task).find_rows(options.data, split) for split in ("train", "test")}
    labels = options.labels or rows["train"].labels
    if labels is None:
        raise SystemExit(f"{options.data} does not name its classes; give them with --labels, in their order")
    task = make_task(options, labels)
    backbone = options.backbone or SViTConfig(**TINY, drop_path_rate=options.drop_path_rate)
    # random weights follow from the seed
    torch.manual_seed(options.seed)
    model = task.build_model(backbone, width=options.width, head_options=json.loads(options.head_options))
    examples = TrainingExamples(task, rows["train"], options.seed)
    follow = Follow(examples, options.average_decay)
    start, processor_start = time.perf_counter(), time.process_time()
    trainer = Trainer(
        model,
        training_arguments(options),
        train_dataset=examples,
        data_collator=task.collate,
        callbacks=[follow],
    )
    trainer.train()
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    with follow.average.in_place():
        metrics = task.evaluate(model, rows["test"], options.batch_size).metrics
        trainer.save_model()
        task.processor.save_pretrained(options.output_dir)
        write_text(options.output_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        with whole_file(options.output_dir / "predictions.png") as file:
            samples = [task.read(*rows["test"][index]) for index in range(min(NUM_DRAWN, len(rows["test"])))]
            contact_sheet(task, model, samples).save(file, "PNG")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {seconds:.0f} seconds of training ({processor_seconds:.0f} of the "
        f"processor), {len(rows['test'])} test images"
    )
    print(*(f"{name} {value:.4f}" for name, value in metrics.items()), sep="\n")
    return metrics


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", help="names of the classes; by default what the data say")
    parser.add_argument("--backbone", help="folder or Hub id of an SViT with weights; by default a small random one")
    parser.add_argument("--head", help="by default UperNet, Mask2Former or D-FINE")
    parser.add_argument("--head-options", default="{}", help="more fields of the head's config, as JSON")
    parser.add_argument("--width", type=int, default=64, help="channels of the head")
    parser.add_argument("--image-size", type=int, nargs="+", default=[128], help="one edge, or height and width")
    parser.add_argument("--crop-size", type=int, help="edge of training examples; by default the image size")
    parser.add_argument("--scale", type=float, nargs=2, default=(0.3, 1.0), help="share of the area that is cropped")
    parser.add_argument("--vertical-flip", type=float, default=0.5)
    parser.add_argument("--color", type=float, default=0.0, help="strength of changes in brightness and contrast")
    parser.add_argument("--binary", action="store_true", help="every value of a mask but 0 is class 1")
    parser.add_argument("--box-format", default="xywh", choices=["xywh", "xyxy"])
    parser.add_argument("--clip-boxes", action="store_true", help="cut boxes that reach out of their image")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--average-decay", type=float, default=0.99, help="of the moving average that is evaluated")
    parser.add_argument("--drop-path-rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def make_task(options: argparse.Namespace, labels: Sequence[str]) -> DenseTask:
    """Make the task that the command line describes."""
    size = options.image_size[0] if len(options.image_size) == 1 else tuple(options.image_size)
    annotations = AnnotationOptions(
        is_binary=options.binary, box_format=options.box_format, clip_boxes=options.clip_boxes
    )
    crop = (options.crop_size, options.crop_size) if options.crop_size else None
    augmentation = Augmentation(
        vertical_flip=options.vertical_flip, scale=tuple(options.scale), color=options.color, size=crop
    )
    return task_class(options.task)(labels, size, options.head, augmentation, annotations)


def training_arguments(options: argparse.Namespace) -> TrainingArguments:
    """Return the arguments of Trainer."""
    return TrainingArguments(
        str(options.output_dir),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_grad_norm=options.max_grad_norm,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=options.seed,
        # a last batch of one image would leave norms of 1 x 1 maps nothing to average over
        dataloader_drop_last=True,
        # the examples are made by the data set
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
