# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from svit_hf.errors import SViTError
from svit_hf.tasks.average_precision import AveragePrecision
from svit_hf.tasks.objects import Objects, boxes_of_masks
from svit_hf.tasks.pictures import Origin
from svit_hf.tasks.task import Sample


LABELS = ["cell", "hole"]
SHAPE = (100, 120)


def objects(random, count, of_masks, near=None):
    """Draw objects; with `near`, some of them close to those, and with scores."""
    corners = random.uniform(0, 80, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(8, 20, (count, 2))], axis=1)
    labels = random.integers(0, 2, count)
    scores = None
    if near is not None:
        boxes = np.concatenate([near.boxes + random.normal(0, 1.5, near.boxes.shape), boxes]).clip(0, 99)
        labels = np.concatenate([near.labels, labels])
        scores = random.permutation(len(boxes)) / len(boxes)
    if of_masks:
        masks = np.zeros((len(boxes), *SHAPE), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
            mask[y1:y2, x1:x2] = True
        return Objects(boxes_of_masks(masks), labels, masks, scores, None if near is not None else labels < 0)
    return Objects(boxes, labels, None, scores, None if near is not None else labels < 0)


def pictures(of_masks, count=6, seed=0):
    random = np.random.default_rng(seed)
    for index in range(count):
        # one picture of nothing
        true = objects(random, 0 if index == 2 else int(random.integers(2, 6)), of_masks)
        yield (
            index,
            objects(random, 3, of_masks, near=true),
            Sample(Image.new("RGB", SHAPE[::-1]), true, Origin("x", 0)),
        )


def counted(of_masks, chosen):
    metric = AveragePrecision(LABELS, of_masks)
    for index, prediction, sample in chosen:
        metric.update(index, prediction, sample)
    return metric


def overlap(one, other):
    edges = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = np.prod(edges.clip(0))
    return both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def average_precision(chosen, label, threshold):
    """Compute COCO's number literally: greedy matching by score, precision at 101 recalls."""
    found, num_true = [], 0
    for _, prediction, sample in chosen:
        true = sample.target.boxes[sample.target.labels == label]
        num_true += len(true)
        free = set(range(len(true)))
        mine = prediction.select(prediction.labels == label)
        for place in np.argsort(-mine.scores):
            best = max(free, key=lambda number: overlap(mine.boxes[place], true[number]), default=None)
            hit = best is not None and overlap(mine.boxes[place], true[best]) >= threshold
            if hit:
                free.remove(best)
            found.append((mine.scores[place], hit))
    hits = np.array([hit for _, hit in sorted(found, key=lambda entry: -entry[0])])
    recall, precision = hits.cumsum() / num_true, hits.cumsum() / np.arange(1, len(hits) + 1)
    at = [precision[recall >= wanted].max(initial=0) for wanted in np.linspace(0, 1, 101)]
    return np.mean(at)


@pytest.mark.parametrize("of_masks", [False, True], ids=["boxes", "masks"])
def test_equals_a_literal_computation(of_masks):
    # the scores of different pictures are different, so that their order is one
    chosen = list(pictures(of_masks))
    for index, prediction, _ in chosen:
        prediction.scores = prediction.scores * 0.9 + index * 1e-3
    numbers = counted(of_masks, chosen).compute()
    thresholds = np.linspace(0.5, 0.95, 10)
    for label, name in enumerate(LABELS):
        expected = np.mean([average_precision(chosen, label, threshold) for threshold in thresholds])
        assert numbers[f"map_{name}"] == pytest.approx(expected, abs=1e-9)
        assert 0.1 < expected < 0.95
    expected = np.mean([average_precision(chosen, label, 0.5) for label in range(2)])
    assert numbers["map_50"] == pytest.approx(expected, abs=1e-9)
    assert numbers["map"] == pytest.approx(np.mean([numbers[f"map_{name}"] for name in LABELS]))


@pytest.mark.parametrize("of_masks", [False, True], ids=["boxes", "masks"])
def test_shares_of_a_split_give_the_same_as_the_whole(of_masks):
    chosen = list(pictures(of_masks))
    shares = counted(of_masks, chosen[1::3])
    # the last rank counts a picture that the first has too, as samplers do that fill up
    for share in (chosen[2::3] + chosen[1:2], chosen[0::3]):
        shares.merge(counted(of_masks, share).state())
    assert shares.compute() == pytest.approx(counted(of_masks, chosen).compute(), rel=0, abs=0, nan_ok=True)


def test_masks_are_judged_by_their_pixels():
    square = np.zeros((1, *SHAPE), dtype=bool)
    square[:, 10:30, 10:30] = True
    # two edges of the square: the same box, 0.19 of the pixels
    corner = square.copy()
    corner[:, 12:, 12:] = False
    true = Objects(boxes_of_masks(square), np.array([0]), square, crowd=np.array([False]))
    prediction = Objects(boxes_of_masks(corner), np.array([0]), corner, np.array([0.9]))
    sample = Sample(Image.new("RGB", SHAPE[::-1]), true, Origin("x", 0))
    assert counted(True, [(0, prediction, sample)]).compute()["map"] == 0
    assert counted(False, [(0, prediction, sample)]).compute()["map"] == pytest.approx(1)


def test_crowds_are_neither_found_nor_missed():
    sample = next(iter(pictures(False)))[2]
    sample.target.crowd = np.arange(len(sample.target)) == 0
    rest = sample.target.select(~sample.target.crowd)
    prediction = Objects(sample.target.boxes, sample.target.labels, scores=np.full(len(sample.target), 0.5))
    assert counted(False, [(0, prediction, sample)]).compute()["map"] == pytest.approx(1)
    only_rest = Objects(rest.boxes, rest.labels, scores=np.full(len(rest), 0.5))
    assert counted(False, [(0, only_rest, sample)]).compute()["map"] == pytest.approx(1)


def test_nothing_found_and_nothing_there():
    empty = Objects(np.zeros((0, 4)), np.zeros(0, dtype=int), scores=np.zeros(0))
    samples = [sample for _, _, sample in pictures(False)]
    numbers = counted(False, [(0, empty, samples[0])]).compute()
    assert numbers["map"] == numbers["map_cell"] == 0
    assert all(np.isnan(value) for value in counted(False, [(0, empty, samples[2])]).compute().values())
    with pytest.raises(SViTError, match="no picture was counted"):
        AveragePrecision(LABELS, False).compute()


def test_the_hundred_best_count():
    true = Objects(np.array([[0.0, 0, 10, 10]]), np.array([0]), crowd=np.array([False]))
    sample = Sample(Image.new("RGB", SHAPE[::-1]), true, Origin("x", 0))
    wrong = np.tile([[50.0, 50, 60, 60]], (100, 1))
    prediction = Objects(np.concatenate([true.boxes, wrong]), np.zeros(101, dtype=int), scores=np.linspace(0, 1, 101))
    metric = counted(False, [(0, prediction, sample)])
    assert len(metric.state()[0]["predicted"]) == 100
    assert metric.compute()["map"] == 0


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(SViTError, match=r"need faster-coco-eval; install it with: pip install \"svit-hf\[dense\]\""):
        counted(False, pictures(False)).compute()
