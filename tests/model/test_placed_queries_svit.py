# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher

from svit_hf.model.placed_queries_svit import (
    START_LOGIT,
    START_RADIUS,
    AllPixelsLoss,
    AllPixelsMatcher,
    PlacedMaskPredictor,
    center_loss,
    find_peaks,
)


SIZE = (12, 20)


def disc(y, x, radius, size=SIZE):
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float()


@pytest.fixture
def predictor():
    predictor = PlacedMaskPredictor(8, 2, 8)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
    return predictor


def test_peaks_come_before_what_is_beside_them():
    scores = torch.full((1, 1, *SIZE), -9.0)
    scores[0, 0, 3, 4:6] = torch.tensor([5.0, 4.0])
    scores[0, 0, 9, 17] = 1
    assert find_peaks(scores, 2).tolist() == [[3 * 20 + 4, 9 * 20 + 17]]
    assert find_peaks(scores, 1000).sort().values.tolist() == [list(range(240))]


def test_masks_start_as_discs_about_the_peaks(predictor):
    embeddings = torch.cat([torch.randn(1, 8, *SIZE), torch.full((1, 1, *SIZE), -9.0)], dim=1)
    embeddings[0, 8, 6, 13], embeddings[0, 8, 2, 3] = 2, 1
    masks, is_outside = predictor(torch.randn(2, 1, 8), embeddings, (6, 10))
    assert masks[0, 0, 6, 13] == START_LOGIT
    for mask, (y, x) in zip(masks[0], [(6, 13), (2, 3)], strict=True):
        torch.testing.assert_close((mask > 0).float(), disc(y, x, START_RADIUS * math.sqrt(START_LOGIT)))
    assert is_outside.shape == (2, 2, 60)
    assert not is_outside[0, 0].reshape(6, 10)[3, 6]
    assert is_outside[0, 0].reshape(6, 10)[1, 1]


def test_masks_are_moved_stretched_and_turned(predictor):
    embeddings = torch.zeros(1, 9, *SIZE)
    embeddings[0, 8, 6, 10] = 1

    def first_moments(bias):
        with torch.no_grad():
            predictor.ellipse.bias.copy_(torch.tensor(bias))
        mask = (predictor(torch.zeros(1, 1, 8), embeddings, (6, 10))[0][0, 0] > 0).float()
        y, x = mask.nonzero().float().T
        return y.mean(), x.mean(), y.std(), x.std(), ((y - y.mean()) * (x - x.mean())).mean()

    small = first_moments([0.0, 0.0, 1.0, 1.0, 0.0])
    moved = first_moments([3.0, -2.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(torch.stack(moved[:2]) - torch.stack(small[:2]), torch.tensor([-2.0, 3.0]))
    assert first_moments([0.0, 0.0, 0.5, 1.0, 0.0])[3] > small[3]
    assert first_moments([0.0, 0.0, 1.0, 0.5, 0.0])[2] > small[2]
    assert first_moments([0.0, 0.0, 1.0, 1.0, 2.0])[4] < small[4]


def test_the_loss_of_centres_is_least_where_they_are():
    masks = [torch.stack([disc(8, 10, 4, (24, 40)), disc(17, 33, 3, (24, 40))]), torch.zeros(0, 24, 40)]
    scores = torch.full((2, 1, *SIZE), -6.0)
    scores[0, 0, 4, 5] = scores[0, 0, 8, 16] = 6
    right = center_loss(scores, masks)
    assert right < 0.02
    assert center_loss(scores.flip(0), masks) > 100 * right
    # beside a centre is not as wrong as far away
    beside, away = scores.clone(), scores.clone()
    beside[0, 0, 4, 6], away[0, 0, 4, 12] = 3, 3
    assert right < center_loss(beside, masks) < center_loss(away, masks)


def test_matches_what_belongs_together_at_all_pixels():
    # smaller than what some hundred random points would meet
    masks = torch.stack([disc(6 * y + 4, 6 * x + 4, 2, (24, 40)) for y in range(3) for x in range(6)])
    order = torch.randperm(18)
    logits = torch.nn.functional.avg_pool2d(masks[order][None], 2) * 12 - 6
    matcher = AllPixelsMatcher(Mask2FormerHungarianMatcher(2.0, 5.0, 5.0))
    labels = torch.zeros(18, dtype=torch.long)
    nothing = (torch.zeros(0, 24, 40), labels[:0])
    (queries, objects), (no_queries, no_objects) = matcher(
        logits.expand(2, -1, -1, -1), torch.zeros(2, 18, 2), [masks, nothing[0]], [labels, nothing[1]]
    )
    assert objects.tolist() == order[queries].tolist()
    assert (len(queries), len(no_queries), len(no_objects)) == (18, 0, 0)


def test_the_loss_counts_all_pixels():
    loss = AllPixelsLoss(Mask2FormerConfig(), {})
    logits, masks = torch.randn(1, 3, *SIZE), [torch.stack([disc(4, 5, 3), disc(6, 12, 2)])]
    indices = [(torch.tensor([2, 0]), torch.tensor([0, 1]))]
    losses = loss.loss_masks(logits, masks, indices, 2)
    chosen = logits[0, [2, 0]]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(chosen, masks[0])
    torch.testing.assert_close(losses["loss_mask"], expected)
    shares = chosen.sigmoid()
    both = (2 * (shares * masks[0]).sum((1, 2)) + 1) / (shares.sum((1, 2)) + masks[0].sum((1, 2)) + 1)
    torch.testing.assert_close(losses["loss_dice"], (1 - both).mean())
