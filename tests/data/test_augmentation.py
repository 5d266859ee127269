# SPDX-License-Identifier: Apache-2.0

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from torchvision.transforms import v2

from svit_hf.data import augmentation
from svit_hf.data.augmentation import TrainingTransform, mix_batch, random_crop, seeded_by
from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.data.sharding import SampleKey
from svit_hf.errors import SViTError


PLAIN = AugmentationOptions(randaugment="", color_jitter=0, random_erasing=0)
FULL = AugmentationOptions(random_erasing=1)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(30, 200, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


def transform(options=FULL):
    return TrainingTransform((32, 48), MEAN, STD, options)


def test_augmentation_follows_from_the_key(image):
    keys = [
        SampleKey(1, 2, 3, 0),
        SampleKey(1, 2, 3, 1),
        SampleKey(1, 2, 4, 0),
        SampleKey(1, 3, 3, 0),
        SampleKey(2, 2, 3, 0),
    ]
    made = [transform()(image, key) for key in keys]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    assert torch.equal(transform()(image, SampleKey(*keys[0])), made[0])
    assert made[0].shape == (3, 32, 48)
    assert made[0].dtype == torch.float32
    assert all(not torch.equal(made[0], other) for other in made[1:])


def test_generator_of_others_is_left_alone(image):
    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.random()

    def seed():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    seed()
    expected = draw()
    seed()
    transform()(image, SampleKey(0, 0, 0))
    with pytest.raises(ZeroDivisionError), seeded_by(1):
        _ = draw(), 1 / 0
    assert draw() == expected


def test_crop_is_that_of_torchvision(image, monkeypatch):
    cropped = {}
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: cropped.update(box=box) or crop(self, box))
    for number in range(20):
        with seeded_by(number):
            ours = random_crop(image, (32, 48), PLAIN)
        left, top, right, bottom = cropped["box"]
        theirs = v2.functional.resized_crop(
            image, top, left, bottom - top, right - left, [32, 48], interpolation=v2.InterpolationMode.BICUBIC
        )
        assert np.array_equal(np.array(ours), np.array(theirs))


def test_crops_have_the_shares_and_ratios_asked_for(monkeypatch):
    boxes = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: boxes.append(box) or crop(self, box))
    image = Image.new("RGB", (400, 300))
    for number in range(300):
        with seeded_by(number):
            random_crop(image, (8, 8), AugmentationOptions(scale=(0.2, 0.5)))
    shares = [(right - left) * (bottom - top) / 120000 for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 0.195 < min(shares) < 0.22
    assert 0.48 < max(shares) < 0.505
    assert 0.74 < min(ratios) < 0.78
    assert 1.29 < max(ratios) < 1.35


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1)])
def test_crop_of_a_picture_that_is_too_long(size):
    options = AugmentationOptions(scale=(0.9, 1))
    with seeded_by(0):
        assert random_crop(Image.new("RGB", size), (8, 8), options).size == (8, 8)


def test_flip_mirrors_half_of_the_images(image):
    whole = AugmentationOptions(
        scale=(1, 1), ratio=(80 / 60, 80 / 60), randaugment="", color_jitter=0, random_erasing=0
    )
    straight = np.array(image.resize((48, 32), Image.Resampling.BICUBIC))
    plain = TrainingTransform((32, 48), (0, 0, 0), (1, 1, 1), whole)
    made = [(plain(image, SampleKey(0, 0, n)) * 255).round().byte().permute(1, 2, 0).numpy() for n in range(100)]
    flipped = [np.array_equal(one, straight[:, ::-1]) for one in made]
    assert all(flip or np.array_equal(one, straight) for one, flip in zip(made, flipped, strict=True))
    assert 35 < sum(flipped) < 65


def test_pixels_are_normalised():
    grey = Image.new("RGB", (20, 20), (51, 102, 153))
    made = transform(PLAIN)(grey, SampleKey(0, 0, 0))
    expected = (torch.tensor([0.2, 0.4, 0.6]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(made.mean((1, 2)), expected)


def test_erased_pixels_are_noise():
    black = Image.new("RGB", (40, 40))
    made = TrainingTransform(
        (40, 40), (0, 0, 0), (1, 1, 1), AugmentationOptions(randaugment="", color_jitter=0, random_erasing=1)
    )
    erased = [made(black, SampleKey(0, 0, n)) for n in range(30)]
    shares = [float((image != 0).all(0).float().mean()) for image in erased]
    assert 0 < min(shares) < 0.1
    assert 0.2 < max(shares) < 0.36
    noise = torch.cat([image[image != 0] for image in erased])
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05


def test_color_jitter_is_for_those_without_randaugment():
    assert isinstance(transform(AugmentationOptions(randaugment="")).recolor, v2.ColorJitter)
    assert isinstance(transform(AugmentationOptions()).recolor, RandAugment)


def test_randaugment_is_timms_with_the_colours_and_the_strength_asked_for(image):
    augment = transform(AugmentationOptions(randaugment="rand-m7-n3-mstd0.5-inc1", interpolation="bilinear")).recolor
    assert augment.num_layers == 3
    assert len(augment.ops) == 15
    for operation in augment.ops:
        assert (operation.magnitude, operation.prob, operation.hparams["magnitude_std"]) == (7, 0.5, 0.5)
        assert operation.kwargs == {"fillcolor": (102, 128, 153), "resample": Image.Resampling.BILINEAR}


def test_without_torchvision_crop_and_flip_work(image, monkeypatch):
    expected = transform(PLAIN)(image, SampleKey(0, 0, 0))
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    assert torch.equal(transform(PLAIN)(image, SampleKey(0, 0, 0)), expected)
    for name, value in (("randaugment", "rand-m9-mstd0.5-inc1"), ("color_jitter", 0.4), ("random_erasing", 0.25)):
        options = {"randaugment": "", "color_jitter": 0, "random_erasing": 0} | {name: value}
        with pytest.raises(SViTError, match=rf"`{name}` is .* which needs (timm|torchvision)"):
            transform(AugmentationOptions(**options))


IMAGES = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16)
LABELS = torch.tensor([0, 2, 4, 1])


def mix(options, update=0, seed=0):
    return mix_batch(IMAGES.clone(), LABELS, options, num_classes=5, seed=seed, update=update)


@pytest.mark.parametrize("options", [MixingOptions(0.8, 0), MixingOptions(0, 1.0), MixingOptions()], ids=str)
def test_target_has_the_share_of_each_image(options):
    for update in range(10):
        pixels, targets = mix(options, update)
        assert targets.shape == (4, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        for place, before in enumerate((3, 0, 1, 2)):
            # the mean pixel tells the share of the image before it
            share = float((pixels[place].mean() - place) / (before - place))
            assert targets[place, LABELS[before]] == pytest.approx(share, abs=1e-5)


def test_mixup_mixes_all_pixels_and_cutmix_a_rectangle():
    assert mix(MixingOptions(0.8, 0))[0][1].unique().numel() == 1
    assert set(mix(MixingOptions(0, 1.0), update=1)[0][1].unique().tolist()) == {0.0, 1.0}


def test_mixing_follows_from_seed_and_update():
    torch.manual_seed(1)
    first = mix(MixingOptions())
    torch.manual_seed(2)
    assert all(map(torch.equal, mix(MixingOptions()), first))
    assert not torch.equal(mix(MixingOptions(), update=1)[1], first[1])
    assert not torch.equal(mix(MixingOptions(), seed=1)[1], first[1])


def test_switch_probability_is_the_share_of_cutmix():
    options = MixingOptions(switch_probability=0.25)
    num_cutmix = sum(mix(options, update)[0][1].unique().numel() == 2 for update in range(200))
    assert 25 < num_cutmix < 75


def test_mixing_may_be_off_and_then_needs_no_torchvision(monkeypatch):
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    pixels, targets = mix(MixingOptions(0, 0))
    assert torch.equal(pixels, IMAGES)
    assert torch.equal(targets.argmax(1), LABELS)
    with pytest.raises(SViTError, match="needs torchvision"):
        mix(MixingOptions())
