# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from svit_hf.training.optimization import balanced_class_weights, make_criterion
from svit_hf.training.options import OptimizationOptions


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def test_cross_entropy_is_smoothed_for_labels_and_soft_targets_alike():
    criterion = make_criterion(OptimizationOptions(label_smoothing=0.1))
    targets = F.one_hot(LABELS, 3) * 0.9 + 0.1 / 3
    expected = -(targets * LOGITS.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(criterion(LOGITS, LABELS), expected)
    torch.testing.assert_close(criterion(LOGITS, F.one_hot(LABELS, 3).float()), expected)


def test_binary_cross_entropy_sums_over_classes():
    criterion = make_criterion(OptimizationOptions(loss="binary_cross_entropy", label_smoothing=0.1))
    targets = F.one_hot(LABELS, 3) * 0.9 + 0.1 / 3
    terms = targets * LOGITS.sigmoid().log() + (1 - targets) * (1 - LOGITS.sigmoid()).log()
    expected = -terms.sum(-1).mean()
    torch.testing.assert_close(criterion(LOGITS, LABELS), expected)
    torch.testing.assert_close(criterion(LOGITS, F.one_hot(LABELS, 3).float()), expected)


def test_balanced_weights_are_inverse_to_the_counts_and_one_on_average():
    counts = [6, 3, 0, 1]
    weights = balanced_class_weights(counts)
    torch.testing.assert_close(weights[[0, 1, 3]], torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert weights[2] == weights[3]
    assert (weights * torch.tensor(counts)).sum() == pytest.approx(10)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_class_weights_multiply_the_terms_of_labels_and_soft_targets_alike(loss):
    weights = torch.tensor([0.5, 2.0, 1.0])
    criterion = make_criterion(OptimizationOptions(loss=loss, label_smoothing=0.1), weights)
    targets = F.one_hot(LABELS, 3) * 0.9 + 0.1 / 3
    terms = targets * (LOGITS.log_softmax(-1) if loss == "cross_entropy" else LOGITS.sigmoid().log())
    if loss == "binary_cross_entropy":
        terms = terms + (1 - targets) * (1 - LOGITS.sigmoid()).log()
    expected = -(weights * terms).sum(-1).mean()
    torch.testing.assert_close(criterion(LOGITS, LABELS), expected)
    torch.testing.assert_close(criterion(LOGITS, F.one_hot(LABELS, 3).float()), expected)
