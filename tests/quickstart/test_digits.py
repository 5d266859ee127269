# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import numpy as np
import pytest

from svit_hf.quickstart.digits import load_digit_images


@pytest.fixture(scope="module")
def digits():
    return load_digit_images()


def test_a_fifth_is_held_out(digits):
    assert {split: len(images) for split, images in digits.items()} == {"train": 1437, "test": 360}


def test_no_digit_is_in_both_splits(digits):
    pictures = {split: Counter(image.tobytes() for image in images["image"]) for split, images in digits.items()}
    assert not pictures["train"].keys() & pictures["test"].keys()


def test_classes_have_the_same_share_in_both(digits):
    counts = {split: Counter(images["label"]) for split, images in digits.items()}
    for label in range(10):
        assert counts["test"][label] / 360 == pytest.approx(counts["train"][label] / 1437, abs=1 / 360)


def test_images_are_grey_and_use_the_whole_range(digits):
    digit = digits["test"][0]
    assert digit["image"].mode == "L"
    assert digit["image"].size == (8, 8)
    pixels = np.stack([np.asarray(image) for image in digits["test"]["image"]])
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_images_keep_their_labels(digits):
    # the mean zero is hollow, the mean one is not
    centres = {
        label: np.mean(
            [np.asarray(digit["image"])[3:5, 3:5].mean() for digit in digits["test"] if digit["label"] == label]
        )
        for label in (0, 1)
    }
    assert digits["test"].features["label"].names == [str(name) for name in range(10)]
    assert centres[0] < 64 < 192 < centres[1]


def test_split_is_always_the_same(digits):
    assert load_digit_images()["test"]["label"] == digits["test"]["label"]
