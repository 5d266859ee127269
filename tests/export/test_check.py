# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from tiny import tiny_config

from svit_hf.export.check import batches_of_many_sizes, compare, smallest_size


LOGITS = torch.tensor([[0.001, -0.004], [0.003, 0.002]])


def constant(logits):
    return lambda pixel_values: logits


def test_equal_logits_differ_by_nothing():
    found = compare(constant(LOGITS), constant(LOGITS), [torch.zeros(2, 3, 8, 8)])
    assert (found.max_difference, found.max_error, found.mean_error, found.unchanged_top1) == (0, 0, 0, 1)


def test_differences_are_counted_over_all_batches():
    changed = iter([LOGITS, LOGITS + torch.tensor([[0.002, 0.0], [0.0, 0.004]])])
    found = compare(lambda pixel_values: next(changed), constant(LOGITS), [torch.zeros(2, 3, 8, 8)] * 2)
    assert found.num_images == 4
    assert found.shapes == [[2, 3, 8, 8]] * 2
    assert found.max_difference == pytest.approx(0.004)
    assert found.mean_difference == pytest.approx(0.006 / 8)
    assert found.mean_error == pytest.approx(0.006 / 8 / 0.0025)
    # one of four images goes from class 0 to class 1
    assert found.unchanged_top1 == 0.75


@pytest.mark.parametrize(("scale", "error"), [(0.5, 0.5), (100.0, 1.0)])
def test_error_is_relative_to_small_logits_and_absolute_for_large_ones(scale, error):
    logits = torch.tensor([[scale, 0.0]])
    step = scale / 2 if scale < 1 else 1.0
    found = compare(constant(logits + torch.tensor([[step, 0.0]])), constant(logits), [torch.zeros(1, 3, 8, 8)])
    assert found.max_error == pytest.approx(error)


def test_nan_is_within_no_tolerance():
    found = compare(constant(LOGITS * math.nan), constant(LOGITS), [torch.zeros(2, 3, 8, 8)])
    assert not found.max_error <= math.inf
    assert not found.mean_error <= math.inf


def test_logits_of_another_shape_are_refused():
    with pytest.raises(AssertionError, match=r"\[1, 2\].* instead of .*\[2, 2\]"):
        compare(constant(LOGITS[:1]), constant(LOGITS), [torch.zeros(2, 3, 8, 8)])


@pytest.mark.parametrize(
    ("cells", "least"),
    # 32 is the stride of the last stage; a cell of 16 tokens of 4 pixels takes 64
    [([4, 2, 1, 1], 33), ([16, 2, 1, 1], 65), ([4, (1, 12), 1, 1], 97)],
)
def test_torch_export_needs_more_than_one_super_token(cells, least):
    config = tiny_config(super_token_sizes=cells)
    assert smallest_size(config, "pt2") == smallest_size(config, "openvino") == least
    assert smallest_size(config, "onnx") == 32


def test_batches_cover_lengths_odd_sizes_and_the_smallest():
    shapes = [tuple(batch.shape) for batch in batches_of_many_sizes(tiny_config(), (64, 48), 33)]
    assert shapes == [(1, 3, 64, 48), (2, 3, 69, 33), (3, 3, 53, 50), (2, 3, 33, 33)]
