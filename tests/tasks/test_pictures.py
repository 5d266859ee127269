# SPDX-License-Identifier: Apache-2.0
"""Augmentation: a pure function of seed, epoch and sample, under which masks and boxes move with the pixels."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from picture_data import encoded
from PIL import Image
from transformers import SegformerImageProcessorPil

from svit_hf.errors import SViTError
from svit_hf.tasks.heads import IMAGENET_MEAN, IMAGENET_STD
from svit_hf.tasks.pictures import Augmentation, BrokenPictureError, Origin, View, decode_mask, decode_picture


ORIGIN = Origin("train.parquet", 3)
EVERY_WAY = Augmentation(vertical_flip=0.5, quarter_turn=0.5)
EVERY_VIEW = [View.random((60, 90), (64, 96), EVERY_WAY, (0, epoch, 7)) for epoch in range(40)]


def to_levels(pixels):
    """Undo the normalisation: uint8 levels of the first channel."""
    return (pixels[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]).mul(255).round().to(torch.uint8).numpy()


def test_views_follow_from_seed_epoch_and_sample():
    one, again = (View.random((60, 90), (64, 96), EVERY_WAY, (2**64 - 1, 5, 3)) for _ in range(2))
    assert one == again
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({View.random((60, 90), (64, 96), EVERY_WAY, key) for key in keys}) == 4
    ways = {(view.is_mirrored, view.is_upside_down, view.is_transposed) for view in EVERY_VIEW}
    assert ways == set(product((False, True), repeat=3))


def test_crops_are_inside_and_have_the_asked_share_and_ratio():
    for view in EVERY_VIEW:
        assert 0 <= view.left <= view.left + view.width <= 90
        assert 0 <= view.top <= view.top + view.height <= 60
        assert 0.27 < view.width * view.height / (60 * 90) <= 1
        ratio = view.width / view.height
        assert 0.7 < (1 / ratio if view.is_transposed else ratio) / 1.5 < 1.4
    whole = View.random((60, 90), (64, 96), Augmentation(0, 0, scale=(1, 1)), (0, 0, 0))
    assert whole == View.whole((60, 90), (64, 96))


def test_quarter_turns_are_to_both_sides_and_mirror_nothing():
    mask = np.random.default_rng(0).integers(0, 255, (64, 96))
    options = Augmentation(0, quarter_turn=1, scale=(1, 1))
    views = [View.random((64, 96), (96, 64), options, (0, epoch, 7)) for epoch in range(20)]
    sides = [[np.array_equal(view.of_masks(mask), np.rot90(mask, turns)) for turns in (1, -1)] for view in views]
    assert {sum(side) for side in sides} == {1}
    assert len({tuple(side) for side in sides}) == 2


def test_pictures_that_no_turned_crop_fits_into_are_not_turned_and_not_squeezed():
    options = Augmentation(0, quarter_turn=1, scale=(0.9, 1))
    views = {View.random((60, 90), (64, 96), options, (0, epoch, 7)) for epoch in range(20)}
    assert not any(view.is_transposed or view.is_mirrored or view.is_upside_down for view in views)


@pytest.mark.parametrize("view", EVERY_VIEW[:12], ids=str)
def test_masks_move_with_the_pixels(view):
    # blocks of 10 pixels, whose level is their number: where nothing else is near, both show exactly the same
    rows, columns = np.indices((60, 90)) // 10
    mask = 4 * (rows * 9 + columns)
    picture = Image.fromarray(mask.astype(np.uint8)).convert("RGB")
    levels, moved = to_levels(view.of_picture(picture)), view.of_masks(mask)
    assert moved.shape == levels.shape == (64, 96)
    near = np.lib.stride_tricks.sliding_window_view(moved, (5, 5))
    is_inside = near.min((2, 3)) == near.max((2, 3))
    assert is_inside.mean() > 0.3
    np.testing.assert_array_equal(levels[2:-2, 2:-2][is_inside], moved[2:-2, 2:-2][is_inside])


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("is_upside_down", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_masks_and_pixels_agree_exactly_at_whole_scales(is_mirrored, is_upside_down, is_transposed):
    mask = np.random.default_rng(0).integers(0, 255, (40, 40))
    picture = Image.fromarray(mask.astype(np.uint8)).convert("RGB")
    size = (32, 16) if is_transposed else (16, 32)
    view = View(3, 5, 32, 16, size, is_mirrored, is_upside_down, is_transposed=is_transposed)
    np.testing.assert_array_equal(to_levels(view.of_picture(picture)), view.of_masks(mask))
    stacked = view.of_masks(np.stack([mask, mask + 1]))
    np.testing.assert_array_equal(stacked[1], view.of_masks(mask) + 1)


def test_colours_change_by_channel_and_the_geometry_stays():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    keys = [(0, epoch, 7) for epoch in range(40)]
    views = [View.random((60, 90), (64, 96), Augmentation(color=0.4), key) for key in keys]
    plain = [View.random((60, 90), (64, 96), Augmentation(), key) for key in keys]
    assert [replace(view, brightnesses=(1, 1, 1), contrasts=(1, 1, 1)) for view in views] == plain
    factors = np.array([[view.brightnesses, view.contrasts] for view in views])
    assert np.abs(np.log(factors)).max() <= 0.6
    assert (np.log(factors).std(0) > 0.15).all()
    assert (factors.std(2) > 0).all()
    for view, before in zip(views[:3], plain, strict=False):
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        bright = (before.of_picture(picture) * std + mean) * torch.tensor(view.brightnesses)[:, None, None]
        middle = bright.mean((1, 2), keepdim=True)
        expected = ((bright - middle) * torch.tensor(view.contrasts)[:, None, None] + middle).clamp(0, 1)
        torch.testing.assert_close(view.of_picture(picture) * std + mean, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", EVERY_VIEW, ids=str)
def test_boxes_move_with_the_pixels(view):
    # a mask at four times the size shows where the corners of a box come to lie
    box = np.array([[22.0, 17.0, 61.0, 48.0], [0.0, 0.0, 5.0, 5.0]])
    fine = replace(view, size=(512, 768))
    moved, visible = fine.of_boxes(box)
    for corners, share, (x1, y1, x2, y2) in zip(moved, visible, box.astype(int), strict=True):
        mask = np.zeros((60, 90), dtype=bool)
        mask[y1:y2, x1:x2] = True
        seen = fine.of_masks(mask)
        part = mask[view.top : view.top + view.height, view.left : view.left + view.width]
        assert share == pytest.approx(part.sum() / mask.sum())
        if part.any():
            rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(corners, expected, atol=1)


def test_evaluation_shows_what_the_processor_makes():
    pixels = np.random.default_rng(0).integers(0, 255, (45, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC)
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 96})
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(View.whole((60, 90), (64, 96)).of_picture(picture), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": 1.5}, "`horizontal_flip` is 1.5"),
        ({"quarter_turn": -0.5}, "`quarter_turn` is -0.5"),
        ({"scale": (0, 1)}, "`scale` is"),
        ({"scale": (0.8, 0.5)}, "`scale` is"),
        ({"ratio": (2, 1)}, "`ratio` is"),
        ({"min_visible": -1}, "`min_visible` is"),
        ({"color": 2}, "`color` is 2"),
    ],
    ids=str,
)
def test_impossible_augmentation_is_refused(options, message):
    with pytest.raises(SViTError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM"])
def test_every_listed_format_is_read(file_format):
    assert decode_picture(encoded(Image.new("RGB", (8, 8)), file_format), ORIGIN).size == (8, 8)


def test_masks_keep_their_numbers():
    numbers = np.array([[0, 1], [300, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(numbers)), ORIGIN), numbers)
    palette = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4)
    assert set(np.unique(decode_mask(encoded(palette), ORIGIN))) <= {0, 1, 2, 3}
    bilevel = Image.new("1", (2, 2), 1)
    assert decode_mask(encoded(bilevel), ORIGIN).max() == 1


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "there is no image"),
        ({"bytes": None, "path": "/etc/hostname"}, "there is no image"),
        ("/etc/hostname", "there is no image"),
        (b"no picture", "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "cannot be read"),
        (encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"), "floating point"),
    ],
    ids=["nothing", "path", "text", "no picture", "program", "floats"],
)
def test_what_is_no_picture_is_named(stored, message):
    with pytest.raises(BrokenPictureError, match=rf"^train.parquet, row 3: .*{message}"):
        decode_picture(stored, ORIGIN)
