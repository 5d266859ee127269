# SPDX-License-Identifier: Apache-2.0
"""The quickstart: train a tiny SViT on embedded digits, evaluate, save, reload, classify, and show it.

A run that fails or is interrupted leaves an earlier result as it was.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from svit_hf.demo.contact_sheet import Prediction, draw_contact_sheet
from svit_hf.demo.digit_training import make_model, make_processor, make_trainer, prepare, settings_of
from svit_hf.demo.digits import load_digit_images
from svit_hf.demo.output_folder import add_provenance, replace_own_output
from svit_hf.demo.quickstart_card import quickstart_card
from svit_hf.errors import SViTError
from svit_hf.hub.model_card import build_model_card


GOOD_ACCURACY = 0.97
MODEL_FOLDER, IMAGE_FOLDER, PICTURE, REPORT = "model", "images", "predictions.png", "quickstart.json"
NUM_SHOWN = 40
MADE_BY = "svit-hf quickstart"


@dataclass(frozen=True)
class QuickstartReport:
    """Hold what came out of a quickstart.

    Attributes:
        output_dir: The folder that was written.
        accuracy: Share of the held-out digits that the trained model gets right.
        top5_accuracy: Share of them whose class is among the first five.
        num_images: How many digits were held out.
        num_wrong: How many of them the trained model gets wrong.
        num_changed: How many the reloaded model answers otherwise than the trained one.
        num_parameters: Parameters of the model.
        training_seconds: Duration of the training alone.
        seconds: Duration of everything but loading the libraries.
    """

    output_dir: Path
    accuracy: float
    top5_accuracy: float
    num_images: int
    num_wrong: int
    num_changed: int
    num_parameters: int
    training_seconds: float
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is not as it has to be, in words."""
        problems = []
        if self.accuracy < GOOD_ACCURACY:
            problems.append(f"the accuracy should be at least {GOOD_ACCURACY:.0%}")
        # another image backend may round otherwise, which can turn a close answer
        if self.num_changed > (1 - GOOD_ACCURACY) * self.num_images:
            problems.append("the model should give the same answers after saving as before")
        return problems

    def text(self) -> str:
        """Return what to print."""
        model, image = self.output_dir / MODEL_FOLDER, self.output_dir / IMAGE_FOLDER / "7.png"
        changed = f"{self.num_changed} other answers than" if self.num_changed else "the same answers as"
        lines = {
            "accuracy": f"{self.accuracy:.2%} of {self.num_images} held-out digits, {self.num_wrong} wrong; "
            f"top-5 {self.top5_accuracy:.2%}",
            "reloaded": f"in a fresh process, through the Auto classes and a pipeline: {changed} before saving",
            "time": f"{self.seconds:.0f} s after loading the libraries, {self.training_seconds:.0f} s of it training",
            "model": f"{model} ({self.num_parameters:,} parameters)",
            "model card": model / "README.md",
            "picture": self.output_dir / PICTURE,
        }
        summary = "\n".join(f"{name:<12}{value}" for name, value in lines.items())
        verdict = "".join(f"\nNot good enough: {problem}.\n" for problem in self.problems)
        return f"""
{summary}

Use the model from Python:

    import svit_hf
    from transformers import pipeline
    print(pipeline("image-classification", model="{model}")("{image}"))
{verdict}"""


def run_quickstart(output_dir: Path, *, epochs: int = 12, seed: int = 0) -> QuickstartReport:
    """Train, evaluate, save, reload, classify and draw.

    Args:
        output_dir: The folder to write; see `QuickstartCommand` for what may be in it.
        epochs: Passes over the training digits, at least 1.
        seed: Fixes initial weights and order.

    Returns:
        What came out.

    Raises:
        SViTError: If an argument is impossible, the folder holds something else, or the fresh process fails.
    """
    if epochs < 1:
        raise SViTError(f"`epochs` is {epochs}; it has to be at least 1.")
    started = time.monotonic()
    with _quiet(), replace_own_output(output_dir, REPORT, MADE_BY) as folder:
        digits = load_digit_images()
        names = digits["test"].features["label"].names
        processor = make_processor()
        model = make_model(names, seed)
        trainer: Any = make_trainer(
            model, prepare(digits, processor), folder.parent / "trainer", epochs=epochs, seed=seed
        )
        _say(f"training {model.num_parameters():,} parameters on {len(digits['train'])} digits")
        training_seconds = trainer.train().metrics["train_runtime"]
        held_out = trainer.predict(trainer.eval_dataset, metric_key_prefix="held_out")
        answers = [names[label] for label in held_out.predictions[:, 0]]

        model_dir = folder / MODEL_FOLDER
        model.save_pretrained(model_dir)
        processor.save_pretrained(model_dir)
        _say(f"loading the saved model in a fresh process, to classify the {len(answers)} held-out digits")
        predictions = _classify_in_fresh_process(model_dir, digits["test"])
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
        card = quickstart_card(
            location=str(output_dir / MODEL_FOLDER),
            command=f"{MADE_BY} --epochs {epochs} --seed {seed}",
            settings=settings_of(trainer.args) | {"training time": f"{training_seconds:.0f} s"},
            num_trained=len(digits["train"]),
            num_held_out=report.num_images,
            metrics={"accuracy": report.accuracy, "top5_accuracy": report.top5_accuracy},
        )
        build_model_card(model, card).save(model_dir / "README.md")
        _save_pictures(predictions, folder)
        content = add_provenance(asdict(report) | {"output_dir": str(output_dir)}, folder, MADE_BY)
        (folder / REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from drawing bars and giving advice between our own lines."""
    verbosity, draws_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    datasets_draws_bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if draws_bars:
            logging.enable_progress_bar()
        if datasets_draws_bars:
            datasets.enable_progress_bars()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _classify_in_fresh_process(model_dir: Path, held_out: datasets.Dataset) -> list[Prediction]:
    command = [sys.executable, "-P", "-m", "svit_hf.demo.classify_digits", str(model_dir)]
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


def _save_pictures(predictions: list[Prediction], folder: Path) -> None:
    wrong = [prediction for prediction in predictions if not prediction.is_right]
    right = [prediction for prediction in predictions if prediction.is_right]
    shown = [*wrong, *right][:NUM_SHOWN]
    num_wrong_shown = min(len(wrong), NUM_SHOWN)
    sheet = draw_contact_sheet(
        shown,
        title=f"{len(right)} of {len(predictions)} held-out digits read correctly",
        subtitle=f"{num_wrong_shown} of {len(wrong)} wrong ones, {len(shown) - num_wrong_shown} of {len(right)} right "
        "ones; below each digit what the model reads, and its probability",
    )
    sheet.save(folder / PICTURE)
    images = folder / IMAGE_FOLDER
    images.mkdir()
    # the first digit of each class
    for prediction in reversed(predictions):
        prediction.image.save(images / f"{prediction.truth}.png")
