# SPDX-License-Identifier: Apache-2.0
"""Accuracy as a metric of the `evaluate` library that is defined here.

`evaluate.load("accuracy")` fetches and runs a script from the Hub; a subclass works offline, and gives top-k as well.
"""

from typing import Any

import datasets
import evaluate
import torch


class TopKAccuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate is not typed
    """Share of images whose class is ranked first, and among the first `k`.

    Predictions are what `rank_classes` gives: class ids, the likeliest first, equally many for each image. The k-th
    place is all that counts of them, so that a model with 1000 classes hands over `k` numbers per image, not 1000.
    With fewer than `k` ids all of them count.

    Args:
        k: How many ids count; the result has the keys `accuracy` and `top{k}_accuracy`.
        **kwargs: See `evaluate.Metric`.

    Raises:
        ValueError: If `k` is below 1; by `compute`, if there is nothing to compare or rows differ in length.

    Example:
        >>> from svit_hf.evaluation.metrics import TopKAccuracy
        >>> metric = TopKAccuracy(k=2)
        >>> metric.compute(predictions=[[3, 5, 7], [0, 1, 2]], references=[5, 0])
        {'accuracy': 0.5, 'top2_accuracy': 1.0}
    """

    def __init__(self, k: int = 5, **kwargs: Any):
        if k < 1:
            raise ValueError(f"`k` is {k}; it has to be at least 1.")
        self.k = k
        # the alternative is a file with a lock in the user's cache
        super().__init__(**({"keep_in_memory": True} | kwargs))

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"Share of images whose class is ranked first, and among the first {self.k}.",
            citation="",
            inputs_description="predictions: class ids of each image, likeliest first; references: the right class.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        lengths = {len(ranked) for ranked in predictions}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"`predictions` has rows of {sorted(lengths)} class ids; it needs as many for each image."
            )
        if not lengths:
            raise ValueError("There is nothing to compare: no predictions were added.")
        hits = torch.tensor(predictions)[:, : self.k] == torch.tensor(references)[:, None]
        return {"accuracy": hits[:, 0].double().mean().item(), f"top{self.k}_accuracy": hits.sum().item() / len(hits)}


def rank_classes(logits: torch.Tensor, k: int = 5) -> torch.Tensor:
    """Return the `k` likeliest classes, best first: `(B, num_labels)` to `(B, min(k, num_labels))`, int64."""
    return logits.topk(min(k, logits.shape[-1]), dim=-1).indices
