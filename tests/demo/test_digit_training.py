# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from svit_hf.demo.digit_training import make_model, make_processor, make_trainer, prepare
from svit_hf.demo.digits import load_digit_images


NAMES = [str(name) for name in range(10)]


@pytest.fixture(scope="module")
def few_digits():
    digits = load_digit_images()
    for split in digits:
        digits[split] = digits[split].select(range(70))
    return digits


def train(digits, tmp_path, seed):
    model = make_model(NAMES, seed)
    make_trainer(model, prepare(digits, make_processor()), tmp_path / "trainer", epochs=1, seed=seed).train()
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
    # the whole digit is there: its corners are the corners of the input, grey in all channels
    mean, std = (torch.tensor(getattr(make_processor(), name))[:, None, None] for name in ("image_mean", "image_std"))
    grey = pixel_values * std + mean
    torch.testing.assert_close(grey[0], grey[2], atol=1e-6, rtol=0)
    corners = [digit["image"].getpixel(place) / 255 for place in ((0, 0), (7, 7))]
    torch.testing.assert_close(grey[0, [0, 31], [0, 31]], torch.tensor(corners), atol=0.1, rtol=0)
