# SPDX-License-Identifier: Apache-2.0
"""The quickstart: train a tiny SViT on embedded digits, evaluate, save, reload, classify, and show it.

The data are the 1797 real handwritten digits of 8x8 grey pixels out of scikit-learn's wheel: "Optical Recognition of
Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI, 1998), the test part. A pixel counts the ink in a block of 4x4 pixels
of the scanned form, 0 to 16.

`python -m svit_hf.quickstart.digits MODEL_DIR` prints what a saved model reads:
JSON, `[label, score]` per held-out digit.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, pipeline, set_seed
from transformers.utils import logging

from svit_hf.errors import SViTError
from svit_hf.evaluation.metrics import TopKAccuracy, rank_classes
from svit_hf.hub.remote_code import save_with_code
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.progress import Progress, quiet_libraries, say
from svit_hf.quickstart.report import MODEL_FOLDER, Prediction, QuickstartReport, replace_own_output, write_report


MOST_INK = 16
HELD_OUT_SHARE = 0.2
# the held-out digits are the same for every seed of a training run, so that runs can be compared
SPLIT_SEED = 0
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


def run_quickstart(output_dir: Path, *, epochs: int = 12, seed: int = 0) -> QuickstartReport:
    """Train, evaluate, save, reload, classify and draw; a run that fails leaves an earlier result as it was.

    Raises:
        SViTError: If an argument is impossible, the folder holds something else, or the fresh process fails.
    """
    if epochs < 1:
        raise SViTError(f"`epochs` is {epochs}; it has to be at least 1.")
    started = time.monotonic()
    with _quiet(), replace_own_output(output_dir) as folder, TemporaryDirectory() as scratch:
        digits = load_digit_images()
        names = digits["test"].features["label"].names
        processor, model = make_processor(), make_model(names, seed)
        trainer: Any = make_trainer(model, prepare(digits, processor), scratch, epochs=epochs, seed=seed)
        say(f"training {model.num_parameters():,} parameters on {len(digits['train'])} digits")
        training_seconds = trainer.train().metrics["train_runtime"]
        held_out = trainer.predict(trainer.eval_dataset, metric_key_prefix="held_out")
        answers = [names[label] for label in held_out.predictions[:, 0]]

        save_with_code(model, folder / MODEL_FOLDER, processor)
        say(f"loading the saved model in a fresh process, to classify the {len(answers)} held-out digits")
        predictions = _classify_in_fresh_process(folder / MODEL_FOLDER, digits["test"])
        report = QuickstartReport(
            output_dir=output_dir,
            accuracy=held_out.metrics["held_out_accuracy"],
            top5_accuracy=held_out.metrics["held_out_top5_accuracy"],
            num_images=len(answers),
            num_wrong=sum(answer != after.truth for answer, after in zip(answers, predictions, strict=True)),
            num_changed=sum(answer != after.label for answer, after in zip(answers, predictions, strict=True)),
            num_parameters=model.num_parameters(),
            training_seconds=training_seconds,
            seconds=time.monotonic() - started,
        )
        write_report(folder, report, model, predictions, settings_of(trainer.args), len(digits["train"]))
    return report


def load_digit_images() -> datasets.DatasetDict:
    """Return the splits `train` (1437 images) and `test` (360), with the columns `image` and `label`.

    Each class has the same share in both. Nothing is downloaded or cached. The digits do not say who wrote them, so
    that one writer's digits can be in both splits.
    """
    digits = load_digits()
    pixels = np.round(digits.images * (255 / MOST_INK)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    images = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": digits.target}, features=features
    )
    return images.train_test_split(
        test_size=HELD_OUT_SHARE, stratify_by_column="label", seed=SPLIT_SEED, keep_in_memory=True
    )


def make_processor() -> SViTImageProcessorPil:
    """Return what enlarges the digits and gives them the three channels that a model expects."""
    # the whole digit: small pictures made for the purpose have no margin that could be cropped, as photographs have
    settings: dict[str, Any] = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "crop_pct": 1.0}
    return SViTImageProcessorPil(**settings)


def make_model(names: list[str], seed: int) -> SViTForImageClassification:
    """Return the model with random weights."""
    set_seed(seed)
    id2label = dict(enumerate(names))
    label2id = {name: label for label, name in id2label.items()}
    return SViTForImageClassification(SViTConfig(**LAYOUT, id2label=id2label, label2id=label2id))


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


def make_trainer(
    model: SViTForImageClassification, inputs: datasets.DatasetDict, output_dir: str, *, epochs: int, seed: int
) -> Trainer:
    """Return a trainer that shows its progress, measures accuracy, and saves nothing.

    It makes this process compute on the CPU with one thread. The model is too small to share: more threads win little
    on an idle machine, wait for each other on a busy one, and do not add up in the same order everywhere.
    """
    num_steps = epochs * -(-len(inputs["train"]) // BATCH_SIZE)
    arguments = TrainingArguments(
        output_dir=output_dir,
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
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=inputs["train"],
        eval_dataset=inputs["test"],
        compute_metrics=lambda found: metric.compute(predictions=found.predictions, references=found.label_ids),
        preprocess_logits_for_metrics=lambda logits, labels: rank_classes(logits),
        callbacks=[TrainingProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class TrainingProgress(TrainerCallback):
    """Progress of a `Trainer` on stderr: a line per epoch, and a bar on a terminal."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        # the lines of the epochs are those of a file
        self.progress = Progress(state.max_steps, "steps", every_seconds=math.inf)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.progress.advance()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.progress.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the mean loss of the epoch that ended."""
        if "loss" in logs:
            epoch, epochs = round(state.epoch or 0), round(args.num_train_epochs)
            self.progress.say(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {logs['loss']:.3f}")


def classify_digits(model_dir: str, batch_size: int = 60) -> list[tuple[str, float]]:
    """Return the likeliest label of every held-out digit, and its probability.

    Raises:
        TypeError: If the Auto classes make something else than an SViT of the folder.
    """
    classify = pipeline("image-classification", model=model_dir, device="cpu")
    if not isinstance(classify.model, SViTForImageClassification):
        raise TypeError(f"the Auto classes made a {type(classify.model).__name__} of {model_dir}.")
    images = list(load_digit_images()["test"]["image"])
    return [(best["label"], best["score"]) for (best,) in classify(images, top_k=1, batch_size=batch_size)]


def _classify_in_fresh_process(model_dir: Path, held_out: datasets.Dataset) -> list[Prediction]:
    """Prove that the folder is complete."""
    command = [sys.executable, "-P", "-m", "svit_hf.quickstart.digits", str(model_dir)]
    # the folder has to do without the Hub
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SViTError(f"the saved model could not be used in a fresh process, which said:\n{result.stderr}")
    names = held_out.features["label"].names
    return [
        Prediction(digit["image"], names[digit["label"]], label, score)
        for digit, (label, score) in zip(held_out, json.loads(result.stdout), strict=True)
    ]


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from drawing bars and giving advice between our own lines."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet_libraries():
            yield
    finally:
        logging.set_verbosity(verbosity)


if __name__ == "__main__":
    json.dump(classify_digits(sys.argv[1]), sys.stdout)
