# SPDX-License-Identifier: Apache-2.0
import io

import datasets
import evaluate
import numpy as np
import pytest
import torch
from evaluation_data import NAMES, logits_of, make_classifier, picture
from PIL import Image

from svit_hf import SViTImageProcessorPil
from svit_hf.evaluation.metrics import TopKAccuracy, rank_classes


RANKED = [[3, 1, 2], [0, 1, 2], [2, 3, 0], [1, 0, 3]]
REFERENCES = [3, 2, 3, 2]


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, 0.25), (2, 0.5), (3, 0.75), (5, 0.75)],
    ids=["top1", "top2", "top3", "more-than-there-are"],
)
def test_counts_the_first_k(k, expected):
    result = TopKAccuracy(k=k).compute(predictions=RANKED, references=REFERENCES)
    assert result == {"accuracy": 0.25, f"top{k}_accuracy": expected}


def test_batches_give_the_same_as_one_call_and_it_can_be_asked_again():
    metric = TopKAccuracy(k=2)
    for _ in range(2):
        for rows in (slice(0, 1), slice(1, 4)):
            metric.add_batch(predictions=np.array(RANKED)[rows], references=torch.tensor(REFERENCES)[rows])
        assert metric.compute() == {"accuracy": 0.25, "top2_accuracy": 0.5}


def test_agrees_with_counting_on_random_logits():
    logits = torch.randn(50, 12)
    labels = torch.randint(12, (50,))
    result = TopKAccuracy().compute(predictions=rank_classes(logits), references=labels)
    # how many classes score higher than the right one
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    assert result["accuracy"] == pytest.approx((ranks < 1).double().mean().item())
    assert result["top5_accuracy"] == pytest.approx((ranks < 5).double().mean().item())


@pytest.mark.parametrize("num_labels", [3, 7])
def test_ranks_best_first(num_labels):
    logits = torch.arange(num_labels).repeat(2, 1).float()
    ranked = rank_classes(logits)
    assert ranked.dtype == torch.int64
    assert ranked.tolist() == [sorted(range(num_labels), reverse=True)[:5]] * 2


@pytest.mark.parametrize(
    ("k", "predictions", "message"),
    [
        (0, [[1]], "`k` is 0"),
        (5, [[1, 2], [1]], "as many for each image"),
        (5, [[], []], "as many for each image"),
        (5, [], "nothing to compare"),
    ],
    ids=["no-k", "ragged", "empty", "none"],
)
def test_what_cannot_be_counted_is_refused(k, predictions, message):
    with pytest.raises(ValueError, match=message):
        TopKAccuracy(k=k).compute(predictions=predictions, references=[1] * len(predictions))


def test_evaluator_of_evaluate_takes_the_metric(tmp_path):
    # the one way in which evaluate 0.4.6 works with Transformers 5: a model, its processor and a metric object
    model = make_classifier(tmp_path / "model")
    images = [Image.open(io.BytesIO(picture(number))) for number in range(6)]
    answers = logits_of(model, range(6)).argmax(dim=1).tolist()
    labels = [answer if number < 4 else (answer + 1) % 5 for number, answer in enumerate(answers)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})

    class RankedFirst(TopKAccuracy):
        """Take one class per image, as the evaluator gives it."""

        def _compute(self, predictions, references, **kwargs):
            return super()._compute([[label] for label in predictions], references, **kwargs)

        def _info(self):
            info = super()._info()
            info.features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64")))
            return info

    result = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=model,
        feature_extractor=SViTImageProcessorPil.from_pretrained(tmp_path / "model"),
        data=datasets.Dataset.from_dict({"image": images, "label": labels}, features=features),
        metric=RankedFirst(k=1),
        label_mapping=model.config.label2id,
    )
    assert result["accuracy"] == pytest.approx(4 / 6)
