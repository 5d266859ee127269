# SPDX-License-Identifier: Apache-2.0
"""Measures of samplers, on pictures whose answer is known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS, sample_super_tokens
from svit_hf.samplers.measures import (
    achievable_accuracy,
    boundary_recall,
    pixel_tokens,
    reconstruction_error,
    regions_of,
)


CELL = (4, 4)


def halves(size=8, split=4):
    """Return a mask with object 1 on the left and 2 on the right."""
    mask = torch.ones(size, size, dtype=torch.int64)
    mask[:, split:] = 2
    return mask


class TestPixelTokens:
    def test_are_standardized_neighbourhoods(self):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
        tokens = pixel_tokens(Image.fromarray(pixels))
        assert tokens.shape == (1, 27, 6, 10)
        middle = tokens[0].unflatten(0, (3, 9))[:, 4]
        torch.testing.assert_close(middle.mean((1, 2)), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(middle.std((1, 2)), torch.ones(3))
        right = tokens[0].unflatten(0, (3, 9))[:, 5]
        torch.testing.assert_close(right[:, :, :-1], middle[:, :, 1:])

    def test_a_picture_of_one_colour_is_finite(self):
        assert (pixel_tokens(Image.new("RGB", (8, 8), "red")) == 0).all()


class TestReconstruction:
    def test_of_grid_means_is_what_the_cells_vary(self):
        tokens = torch.randn(1, 5, 8, 8)
        sampled = SUPER_TOKEN_SAMPLERS["grid"](tokens, CELL, 1)
        means = tokens.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).repeat_interleave(4, 2).repeat_interleave(4, 3)
        expected = (tokens - means).norm() / (tokens - tokens.mean((2, 3), keepdim=True)).norm()
        assert reconstruction_error(tokens, sampled, CELL) == pytest.approx(expected.item(), rel=1e-5)

    def test_is_nothing_where_each_cell_is_constant(self):
        tokens = torch.randn(1, 5, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        assert reconstruction_error(tokens, SUPER_TOKEN_SAMPLERS["grid"](tokens, CELL, 1), CELL) < 1e-6


class TestRegions:
    def test_of_grid_means_are_the_cells(self):
        tokens = torch.randn(1, 3, 7, 10)
        regions = regions_of(SUPER_TOKEN_SAMPLERS["grid"](tokens, CELL, 1), CELL, (7, 10))
        y, x = torch.meshgrid(torch.arange(7), torch.arange(10), indexing="ij")
        assert torch.equal(regions, y // 4 * 3 + x // 4)

    def test_never_lie_outside(self):
        # most of each token goes to the lower right, which is outside but for one cell, and the rest to its own cell
        sampled = sample_super_tokens(torch.randn(1, 3, 8, 8), CELL)
        association = torch.zeros_like(sampled.association)
        association[..., 8], association[..., 4] = 0.6, 0.4
        regions = regions_of(sampled._replace(association=association), CELL, (8, 8))
        assert regions[::4, ::4].tolist() == [[3, 1], [2, 3]]


class TestObjects:
    def test_regions_along_objects_are_all_right(self):
        assert achievable_accuracy(halves(), halves()) == 1
        assert boundary_recall(halves(), halves()) == 1

    def test_each_region_gets_the_object_with_most_pixels(self):
        # a region of all, half of which is each object; and one cut at a quarter
        assert achievable_accuracy(torch.zeros(8, 8, dtype=torch.int64), halves()) == 0.5
        assert achievable_accuracy(halves(split=2), halves()) == pytest.approx(0.75)

    @pytest.mark.parametrize(("split", "recall"), [(2, 0), (3, 1), (5, 1), (6, 0)])
    def test_boundaries_count_within_the_tolerance(self, split, recall):
        assert boundary_recall(halves(split=split), halves(), tolerance=1) == recall

    def test_without_objects_there_is_no_recall(self):
        assert math.isnan(boundary_recall(halves(), torch.zeros(8, 8, dtype=torch.int64)))
