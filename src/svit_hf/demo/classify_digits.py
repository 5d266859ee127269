# SPDX-License-Identifier: Apache-2.0
"""Classify the held-out digits with a saved model, in a process of its own: proof that the folder is complete.

`python -m svit_hf.demo.classify_digits MODEL_DIR` prints JSON, `[label, score]` for each digit.
"""

import json
import sys

from transformers import pipeline

from svit_hf.demo.digits import load_digit_images
from svit_hf.model.modeling_svit import SViTForImageClassification


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


if __name__ == "__main__":
    json.dump(classify_digits(sys.argv[1]), sys.stdout)
