# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from evaluation_ranks import on_ranks
from scipy.special import log_softmax, softmax
from tiny import tiny_config
from torch import nn

from svit_hf import SViTForImageClassification
from svit_hf.errors import EvaluationError
from svit_hf.evaluation.classification import EvaluationInterruptedError, evaluate_batches
from svit_hf.evaluation.label_maps import LabelMap


NUM_IMAGES, NUM_CLASSES = 101, 7
# sums of float32 log-probabilities in another order; worst case measured: 3e-8
TOLERANCE = 1e-6


class Reader(nn.Module):
    """Model whose pictures are logits: `(B, 1, 1, num_classes)`."""

    def forward(self, pixel_values):
        return pixel_values[:, 0, 0]


@pytest.fixture
def logits():
    return 2 * torch.randn(NUM_IMAGES, NUM_CLASSES)


@pytest.fixture
def labels(logits):
    # right for about half of them
    return torch.where(torch.rand(NUM_IMAGES) < 0.5, logits.argmax(dim=1), torch.randint(NUM_CLASSES, (NUM_IMAGES,)))


def batch_of(logits, labels, sample_ids=None, num_broken=0):
    return {
        "pixel_values": logits[:, None, None],
        "labels": labels,
        "sample_ids": torch.arange(len(labels)) if sample_ids is None else sample_ids,
        "bad_images": ["broken"] * num_broken,
    }


def batches_of(logits, labels, batch_size=8):
    ids = torch.arange(len(labels))
    return [
        batch_of(*part)
        for part in zip(logits.split(batch_size), labels.split(batch_size), ids.split(batch_size), strict=True)
    ]


def evaluate(batches, num_expected=NUM_IMAGES, **kwargs):
    return evaluate_batches(Reader(), batches, num_expected=num_expected, num_classes=NUM_CLASSES, **kwargs)


def timeless(report):
    return dataclasses.replace(report, seconds=1.0)


def test_numbers_are_those_of_numpy(logits, labels):
    report = evaluate(batches_of(logits, labels))

    scores, truth = logits.double().numpy(), labels.numpy()
    probabilities = softmax(scores, axis=1)
    is_hit = scores.argmax(axis=1) == truth
    # how many classes score higher than the right one
    rank = (scores > scores[np.arange(NUM_IMAGES), truth, None]).sum(axis=1)
    assert report.num_images == NUM_IMAGES
    assert report.num_hits == is_hit.sum()
    assert report.accuracy == is_hit.mean()
    assert report.top5_accuracy == (rank < 5).mean()
    assert 0 < report.accuracy < report.top5_accuracy < 1
    assert report.loss == pytest.approx(
        -log_softmax(scores, axis=1)[np.arange(NUM_IMAGES), truth].mean(), rel=TOLERANCE
    )
    assert report.classes == tuple(
        ((truth == label).sum(), is_hit[truth == label].sum()) for label in range(NUM_CLASSES)
    )
    confidence = probabilities.max(axis=1)
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(is_hit[inside].mean() - confidence[inside].mean())
    assert report.calibration_error == pytest.approx(error, rel=TOLERANCE)


def test_calibration_error_of_a_case_by_hand():
    # 4 images with confidence 0.5, of which 1 is right, and 4 with 0.9, of which 3 are right, among two classes:
    # (4 * |1/4 - 0.5| + 4 * |3/4 - 0.9|) / 8
    probabilities = torch.tensor([[0.5 - 1e-6, 0.5 + 1e-6]] * 4 + [[0.1, 0.9]] * 4)
    labels = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0])
    report = evaluate_batches(
        Reader(), [batch_of(probabilities.log(), labels)], num_expected=8, num_classes=2, reduce=lambda counts: counts
    )
    assert report.calibration_error == pytest.approx((4 * 0.25 + 4 * 0.15) / 8, abs=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [(101,), (51, 50), (100, 1), (101, 0), (34, 34, 33), (0, 3, 98)],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_shares_of_any_size_add_up(logits, labels, sizes):
    shares = [batches_of(*share) for share in zip(logits.split(sizes), labels.split(sizes), strict=True)]
    reports = on_ranks(lambda share, reduce: evaluate(share, reduce=reduce), shares)

    expected = timeless(evaluate(batches_of(logits, labels)))
    for report in reports:
        assert timeless(report) == expected


def test_sums_are_the_same_bits_in_any_order(logits, labels):
    # right answers with losses around 1e-4, wrong ones with tens of thousands: float64 has to round their sum
    is_hit = (logits.argmax(dim=1) == labels)[:, None]
    batches = batches_of(logits * torch.where(is_hit, 4, 1e4), labels)
    expected = timeless(evaluate(batches))
    for _ in range(9):
        assert timeless(evaluate([batches[index] for index in torch.randperm(len(batches))])) == expected
    shares = [batches[start::3] for start in range(3)]
    for report in on_ranks(lambda share, reduce: evaluate(share, reduce=reduce), shares):
        assert timeless(report) == expected


@pytest.mark.parametrize("num_expected", [100, 102, 202])
def test_images_missing_or_counted_twice_are_refused_everywhere(logits, labels, num_expected):
    sizes = (51, 50)
    shares = [batches_of(*share) for share in zip(logits.split(sizes), labels.split(sizes), strict=True)]

    def refuse(share, reduce):
        with pytest.raises(EvaluationError, match=f"101 images were counted, .* {num_expected}") as caught:
            evaluate(share, num_expected=num_expected, reduce=reduce)
        return caught.value.exit_code

    assert on_ranks(refuse, shares) == [3, 3]


def test_broken_images_are_told_and_not_counted(logits, labels):
    batches = [batch_of(logits[:60], labels[:60], num_broken=2), batch_of(logits[60:], labels[60:], num_broken=1)]
    report = evaluate(batches, num_expected=NUM_IMAGES + 3)
    assert (report.num_images, report.num_broken) == (NUM_IMAGES, 3)
    assert "3" in report.rows()["  broken, not counted"]
    assert timeless(dataclasses.replace(report, num_broken=0)) == timeless(evaluate(batches_of(logits, labels)))


def test_batch_of_broken_images_alone_is_no_batch_for_the_model(logits, labels):
    batches = [batch_of(logits[:0], labels[:0], num_broken=4), batch_of(logits, labels)]
    assert evaluate(batches, num_expected=NUM_IMAGES + 4).num_images == NUM_IMAGES


def test_nothing_readable_is_refused(logits, labels):
    with pytest.raises(EvaluationError, match="none of the 2 images"):
        evaluate([batch_of(logits[:0], labels[:0], num_broken=2)], num_expected=2)


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_label_that_is_no_class_is_refused(logits, labels, label):
    labels[3] = label
    with pytest.raises(EvaluationError, match=f"label {label}, and the model has the classes 0 to 6"):
        evaluate([batch_of(logits, labels)])


def test_output_that_is_not_finite_is_wrong_and_told(logits, labels):
    right = logits.argmax(dim=1)
    logits[4] = torch.nan
    logits[5, 0] = torch.inf
    report = evaluate([batch_of(logits, right)])
    assert report.num_not_finite == 2
    assert report.num_hits == NUM_IMAGES - 2
    assert report.top5_accuracy == (NUM_IMAGES - 2) / NUM_IMAGES
    assert report.to_json()["loss"] is None
    assert report.rows()["  output not finite"] == "2"


def test_flip_averages_probabilities(logits, labels):
    report = evaluate(batches_of(logits, labels), flip=True)
    # the mirror image of these pictures has the logits in reverse
    scores = logits.double().numpy()
    probabilities = (softmax(scores, axis=1) + softmax(scores[:, ::-1], axis=1)) / 2
    truth = labels.numpy()
    assert report.loss == pytest.approx(-np.log(probabilities[np.arange(NUM_IMAGES), truth]).mean(), rel=TOLERANCE)
    assert report.loss != pytest.approx(evaluate(batches_of(logits, labels)).loss, rel=0.01)
    averaged_logits = log_softmax((scores + scores[:, ::-1]) / 2, axis=1)
    assert report.loss != pytest.approx(-averaged_logits[np.arange(NUM_IMAGES), truth].mean(), rel=0.01)


def test_image_with_several_right_classes_is_right_with_any(logits, labels):
    targets = torch.stack([labels, (labels + 1) % NUM_CLASSES], dim=1)
    targets[::2, 1] = -1
    targets[10] = -1
    label_map = LabelMap(targets, "by image", is_by_image=True)
    report = evaluate(batches_of(logits, labels), label_map=label_map)

    answers = logits.argmax(dim=1)
    is_hit = (targets == answers[:, None]).any(dim=1)
    is_kept = torch.arange(NUM_IMAGES) != 10
    assert (report.num_images, report.num_left_out) == (NUM_IMAGES - 1, 1)
    assert report.num_hits == is_hit[is_kept].sum()
    assert report.num_hits > (answers == labels)[is_kept].sum()
    assert sum(counts.num_hits for counts in report.classes) == report.num_hits


def test_only_competitors_can_be_answered(logits):
    labels = torch.arange(NUM_IMAGES) % 3
    # classes 1, 3 and 5 of the model
    label_map = LabelMap(torch.tensor([[1], [3], [5]]), "mask", competitors=torch.tensor([1, 3, 5]))
    report = evaluate(batches_of(logits, labels), label_map=label_map)

    few = logits[:, [1, 3, 5]]
    assert report.num_hits == (few.argmax(dim=1) == labels).sum()
    assert report.loss == pytest.approx(nn.functional.cross_entropy(few.double(), labels).item(), rel=TOLERANCE)
    assert report.top5_accuracy == 1
    assert [counts.num_images for counts in report.classes] == [0, 34, 0, 34, 0, 33, 0]


def test_stop_of_one_ends_all(logits, labels):
    sizes = (51, 50)
    shares = [batches_of(*share) for share in zip(logits.split(sizes), labels.split(sizes), strict=True)]
    answers = iter([False, True])

    def interrupted(rank, reduce):
        should_stop = (lambda: next(answers)) if rank == 1 else (lambda: False)
        with pytest.raises(EvaluationInterruptedError):
            evaluate(shares[rank], reduce=reduce, should_stop=should_stop)
        return True

    assert on_ranks(interrupted, [0, 1]) == [True, True]


class ModeProbe(nn.Module):
    """Model that remembers the modes in which it was called."""

    def __init__(self):
        super().__init__()
        self.trained, self.frozen = nn.Identity(), nn.Identity()
        self.frozen.eval()
        self.seen = []

    def forward(self, pixel_values):
        self.seen += [module.training for module in self.modules()]
        if self.seen and pixel_values.isnan().any():
            raise FloatingPointError
        return pixel_values[:, 0, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_restored_one_by_one(logits, labels, fails):
    model = ModeProbe()
    if fails:
        logits[0] = torch.nan
        with pytest.raises(FloatingPointError):
            evaluate_batches(model, [batch_of(logits, labels)], num_expected=NUM_IMAGES, num_classes=NUM_CLASSES)
    else:
        evaluate_batches(model, [batch_of(logits, labels)], num_expected=NUM_IMAGES, num_classes=NUM_CLASSES)
    assert model.seen == [False] * 3
    assert [module.training for module in (model, model.trained, model.frozen)] == [True, True, False]


def test_classes_are_those_of_the_config_inside_any_wrapper():
    model = SViTForImageClassification(tiny_config(image_size=32))
    images = {"pixel_values": torch.randn(6, 3, 32, 32), "labels": torch.arange(6) % 5}
    report = evaluate_batches(model, [images], num_expected=6)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    assert len(report.classes) == 5
    assert timeless(evaluate_batches(averaged, [images], num_expected=6)) == timeless(report)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(images["pixel_values"]).logits
    assert report.loss == pytest.approx(nn.functional.cross_entropy(logits, images["labels"]).item(), rel=TOLERANCE)


def test_autocast_runs_the_model_in_the_precision_asked_for():
    model, seen = nn.Linear(4, NUM_CLASSES), []

    def forward(pixel_values):
        output = model(pixel_values)
        seen.append(output.dtype)
        return output

    images = {"pixel_values": torch.randn(6, 4), "labels": torch.arange(6)}
    for dtype in (None, torch.bfloat16):
        evaluate_batches(
            model, [images], num_expected=6, num_classes=NUM_CLASSES, autocast_dtype=dtype, forward=forward
        )
    assert seen == [torch.float32, torch.bfloat16]


def test_number_of_classes_has_to_be_known_and_right(logits, labels):
    with pytest.raises(EvaluationError, match="`num_classes` has to be given for a Reader"):
        evaluate_batches(Reader(), [batch_of(logits, labels)], num_expected=NUM_IMAGES)
    with pytest.raises(EvaluationError, match="`num_classes` is 8, and the model gives 7 logits"):
        evaluate_batches(Reader(), [batch_of(logits, labels)], num_expected=NUM_IMAGES, num_classes=8)
