# SPDX-License-Identifier: Apache-2.0
"""The quickstart: train a tiny SViT on digits that come along, as `svit-hf train` does, and use the saved model.

The data are the 1797 real handwritten digits of 8x8 grey pixels out of scikit-learn's wheel: "Optical Recognition of
Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI, 1998), the test part. A pixel counts the ink in a block of 4x4 pixels
of the scanned form, 0 to 16.

`python -m svit_hf.quickstart.digits MODEL_DIR` prints what a saved model reads:
JSON, `[label, score]` per held-out digit.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import pipeline

from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.progress import quiet_libraries, say
from svit_hf.quickstart.report import (
    MADE_BY,
    MODEL_FOLDER,
    Prediction,
    QuickstartReport,
    replace_own_output,
    write_report,
)
from svit_hf.recipes.smoke import smoke
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.train import train


MOST_INK = 16
HELD_OUT_SHARE = 0.2
# the held-out digits are the same for every seed of a training run, so that runs can be compared
SPLIT_SEED = 0


def run_quickstart(output_dir: Path, *, epochs: int = 12, seed: int = 0) -> QuickstartReport:
    """Train, evaluate, save, reload, classify and draw; a run that fails leaves an earlier result as it was.

    Raises:
        SViTError: If an argument is impossible, the folder holds something else, or the fresh process fails.
    """
    if epochs < 1:
        raise SViTError(f"`epochs` is {epochs}; it has to be at least 1.")
    started = time.monotonic()
    # the model is too small to share: more threads wait for each other, and do not add up in the same order everywhere
    torch.set_num_threads(1)
    with quiet_libraries(), replace_own_output(output_dir) as folder, TemporaryDirectory() as scratch:
        digits, data, run = load_digit_images(), Path(scratch, "digits"), Path(scratch, "run")
        data.mkdir()
        for split, images in digits.items():
            images.to_parquet(data / f"{split}.parquet")
        command = f"{MADE_BY} --epochs {epochs} --seed {seed}"
        of_training = train(recipe_for_digits(data, epochs, seed), run, command=command)

        shutil.move(run / "model", folder / MODEL_FOLDER)
        say(f"loading the saved model in a fresh process, to classify the {len(digits['test'])} held-out digits")
        predictions = _classify_in_fresh_process(folder / MODEL_FOLDER, digits["test"])
        (metrics,) = of_training["metrics"].values()
        report = QuickstartReport(
            output_dir=output_dir,
            accuracy=metrics["accuracy"],
            top5_accuracy=metrics["top5_accuracy"],
            num_images=len(predictions),
            num_wrong_reloaded=sum(not prediction.is_right for prediction in predictions),
            num_parameters=of_training["num_parameters"],
            training_seconds=of_training["seconds"],
            seconds=time.monotonic() - started,
        )
        write_report(folder, report, of_training, predictions)
    return report


def recipe_for_digits(data: Path, epochs: int, seed: int) -> TrainingRecipe:
    """Return the recipe `smoke` for whole digits that are not mirrored; they are evaluated once, at the end."""
    recipe = smoke()
    return replace(
        recipe,
        name="quickstart",
        model=replace(recipe.model, crop_pct=1.0),
        data=DataOptions(path=str(data), num_workers=0),
        augmentation=replace(recipe.augmentation, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0),
        optimization=replace(recipe.optimization, epochs=epochs, warmup_epochs=min(1, epochs), ema_decay=0.0),
        # a line for each epoch
        run=replace(recipe.run, seed=seed, evaluate_every_epochs=epochs, log_every_updates=22),
    )


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


if __name__ == "__main__":
    json.dump(classify_digits(sys.argv[1]), sys.stdout)
