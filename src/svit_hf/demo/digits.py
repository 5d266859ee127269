# SPDX-License-Identifier: Apache-2.0
"""The embedded data: 1797 real handwritten digits of 8x8 grey pixels out of scikit-learn's wheel.

Source: "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI, 1998), the test part, as
`sklearn.datasets.load_digits` has it. Its pixels count the ink in blocks of 4x4 pixels of the scanned form, 0 to 16.
"""

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


MOST_INK = 16
HELD_OUT_SHARE = 0.2
# the held-out digits are the same for every seed of a training run, so that runs can be compared
SPLIT_SEED = 0


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
