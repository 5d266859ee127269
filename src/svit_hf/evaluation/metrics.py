# SPDX-License-Identifier: Apache-2.0
"""Accuracy as a metric of the `evaluate` library that is defined here.

`evaluate.load("accuracy")` fetches and runs a script from the Hub; a subclass works offline, gives top-k as well, and
is exact over processes, because they add up counts and not ratios.
"""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import torch

from svit_hf.errors import EvaluationError


class TopKAccuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate is not typed
    """Share of images whose class is ranked first, and among the first `k`.

    Predictions are what `rank_classes` gives: class ids, the likeliest first, equally many for each image. The k-th
    place is all that counts of them, so that a model with 1000 classes hands over `k` numbers per image, not 1000.
    With fewer than `k` ids all of them count.

    Over several processes, each adds the images that it has seen, be they equally many or none at all, and `compute`
    takes two more arguments: `reduce`, which adds up a float64 tensor over processes (such as that of
    `accelerate.Accelerator`), and `num_expected`, how many images there have to be in all. Everybody gets the same
    result.

    Args:
        k: How many ids count; the result has the keys `accuracy` and `top{k}_accuracy`.
        **kwargs: See `evaluate.Metric`.

    Raises:
        ValueError: If `k` is below 1; by `compute`, if there is nothing to compare or rows differ in length.
        EvaluationError: By `compute`, if the images are not as many as expected.

    Example:
        >>> from svit_hf.evaluation.metrics import TopKAccuracy
        >>> metric = TopKAccuracy(k=2)
        >>> metric.compute(predictions=[[3, 5, 7], [0, 1, 2]], references=[5, 0])
        {'accuracy': 0.5, 'top2_accuracy': 1.0}
        >>> metric.compute(predictions=[[3, 5, 7]], references=[3], reduce=lambda counts: 2 * counts, num_expected=2)
        {'accuracy': 1.0, 'top2_accuracy': 1.0}
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

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Compute the metric of what was added and is given here; see `evaluate.Metric` and the class."""
        # evaluate fails for a process that has added nothing
        if predictions is None and references is None and self.writer is None:
            predictions, references = [], []
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: Any,
        references: Any,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        num_expected: int | None = None,
    ) -> dict[str, float]:
        lengths = {len(ranked) for ranked in predictions}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"`predictions` has rows of {sorted(lengths)} class ids; it needs as many for each image."
            )
        ranked = torch.tensor(predictions, dtype=torch.int64).reshape(len(references), *lengths or {0})
        counts = self.count(ranked, torch.tensor(references, dtype=torch.int64))
        return self.ratios(counts if reduce is None else reduce(counts), num_expected)

    def count(self, ranked: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Count hits, without the machinery of `evaluate`, where the tensors are.

        Args:
            ranked: What `rank_classes` gives, shape `(B, n)`; without rows, `n` may be 0.
            references: The right classes, shape `(B,)`.

        Returns:
            Images whose class is ranked first, those whose class is among the first `k`, and all images: shape `(3,)`,
            float64. Counts of several batches and processes may be added up.
        """
        hits = ranked[:, : self.k] == references[:, None]
        counts = [hits[:, :1].sum(), hits.sum(), hits.new_tensor(len(hits), dtype=torch.int64)]
        return torch.stack(counts).to(torch.float64)

    def ratios(self, counts: torch.Tensor, num_expected: int | None = None) -> dict[str, float]:
        """Turn counts into the result.

        Args:
            counts: What `count` gives, added up.
            num_expected: How many images there have to be; not checked if `None`.

        Raises:
            EvaluationError: If there are more or fewer.
            ValueError: If there are none.
        """
        num_first, num_among, num_images = counts.tolist()
        if num_expected is not None and num_images != num_expected:
            raise EvaluationError(
                f"{num_images:.0f} images were counted, and `num_expected` is {num_expected}: some were left out or "
                "counted twice."
            )
        if num_images == 0:
            raise ValueError("There is nothing to compare: no predictions were added.")
        return {"accuracy": num_first / num_images, f"top{self.k}_accuracy": num_among / num_images}


def rank_classes(logits: torch.Tensor, k: int = 5) -> torch.Tensor:
    """Return the `k` likeliest classes, best first: `(B, num_labels)` to `(B, min(k, num_labels))`, int64."""
    return logits.topk(min(k, logits.shape[-1]), dim=-1).indices
