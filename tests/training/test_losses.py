# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.training.losses import Teacher, balanced_class_weights, make_criterion
from svit_hf.training.options import DistillationOptions, OptimizationOptions


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


class Oracle(nn.Module):
    """Answer with the mean of each channel."""

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values.mean(dim=(2, 3)))


def teacher(**options):
    return Teacher(Oracle(), DistillationOptions(teacher="oracle", **options), torch.full((3,), 2.0), torch.ones(3))


def test_teacher_sees_its_own_normalisation():
    pixel_values = torch.randn(2, 3, 4, 4)
    answers = teacher().answer(pixel_values)
    torch.testing.assert_close(answers, 2 * pixel_values.mean(dim=(2, 3)) + 1)


def test_soft_distillation_is_the_divergence_of_softened_probabilities():
    answers = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    loss = teacher(weight=0.25, temperature=2.0).mix(torch.tensor(8.0), LOGITS, answers)
    theirs, ours = (answers / 2).softmax(-1), (LOGITS / 2).softmax(-1)
    divergence = (theirs * (theirs / ours).log()).sum(-1).mean()
    torch.testing.assert_close(loss, 0.75 * 8 + 0.25 * 4 * divergence)


def test_hard_distillation_is_cross_entropy_with_the_first_choice():
    answers = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    loss = teacher(kind="hard", weight=0.5).mix(torch.tensor(8.0), LOGITS, answers)
    torch.testing.assert_close(loss, 4 + 0.5 * F.cross_entropy(LOGITS, torch.tensor([1, 2])))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_only_the_student_gets_gradients(kind):
    logits = LOGITS.clone().requires_grad_()
    pixel_values = torch.randn(2, 3, 4, 4, requires_grad=True)
    distiller = teacher(kind=kind)
    distiller.mix(torch.tensor(0.0), logits, distiller.answer(pixel_values)).backward()
    assert logits.grad.abs().sum() > 0
    assert pixel_values.grad is None


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
