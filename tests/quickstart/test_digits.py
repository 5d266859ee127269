# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from svit_hf.quickstart.digits import load_digit_images, make_model, make_processor, make_trainer, prepare


NAMES = [str(name) for name in range(10)]


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


@pytest.fixture(scope="module")
def few_digits(digits):
    return datasets.DatasetDict({split: images.select(range(70)) for split, images in digits.items()})


def train(digits, tmp_path, seed):
    model = make_model(NAMES, seed)
    make_trainer(model, prepare(digits, make_processor()), str(tmp_path), epochs=1, seed=seed).train()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_seed_fixes_the_weights():
    first, again, other = (make_model(NAMES, seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seed_fixes_the_training(few_digits, tmp_path):
    assert torch.equal(train(few_digits, tmp_path, 3), train(few_digits, tmp_path, 3))


def test_inputs_are_the_enlarged_digits(few_digits):
    digit, prepared = few_digits["test"][0], prepare(few_digits, make_processor())["test"][0]
    assert prepared["label"] == digit["label"]
    pixel_values = prepared["pixel_values"]
    assert pixel_values.shape == (3, 32, 32)
    assert pixel_values.dtype == torch.float32
    # the whole digit is there, edges included, grey in all channels
    mean, std = (torch.tensor(getattr(make_processor(), name))[:, None, None] for name in ("image_mean", "image_std"))
    enlarged = np.asarray(digit["image"].resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = torch.from_numpy(enlarged).float().expand(3, 32, 32)
    torch.testing.assert_close(pixel_values * std + mean, expected, atol=0.01, rtol=0)
