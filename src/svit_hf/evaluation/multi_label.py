# SPDX-License-Identifier: Apache-2.0
"""Evaluate a classifier whose images have any number of labels: average precision, F1, loss.

Average precision needs the scores of all images together. Each process puts those of its share at the places of the
images in one table, and one sum over processes makes it whole: adding zeros rounds nothing, so that the numbers do not
depend on processes, workers or batches.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.errors import EvaluationError
from svit_hf.evaluation.outputs import EvaluationInterruptedError, Ranks, evaluating, outputs_of
from svit_hf.evaluation.report import Report, table_of_classes


# a label is predicted from this probability on
THRESHOLD = 0.5


class LabelScores(NamedTuple):
    """Images that have a label, and how well the model finds them; `None` where no image has it."""

    num_images: int
    average_precision: float | None
    f1: float | None


@dataclass(frozen=True)
class MultiLabelReport(Report):
    """Numbers of an evaluation with several labels per image, over all processes.

    Attributes:
        num_images: Images that count.
        num_broken: Images that could not be read, which do not count.
        num_not_finite: Images for which the model's output was not finite; no label is predicted for them.
        mean_average_precision: Mean over the labels that some image has.
        micro_f1: F1 of all decisions together, at a probability of 0.5.
        macro_f1: Mean over the labels that some image has.
        loss: Binary cross entropy, summed over labels and averaged over images, in nats.
        classes: Numbers of each label.
        seconds: Duration, from the first batch asked for until all processes have finished.
    """

    num_images: int
    num_broken: int
    num_not_finite: int
    mean_average_precision: float
    micro_f1: float
    macro_f1: float
    loss: float
    classes: tuple[LabelScores, ...]
    seconds: float

    # every image has labels, be they none
    num_left_out = 0
    best_metric = "mean_average_precision"
    log_fields = ("mean_average_precision", "micro_f1", "macro_f1", "loss", "num_images")

    def line(self) -> str:
        """Return the most important numbers in a line."""
        return f"mAP {self.mean_average_precision:7.2%}  F1 {self.micro_f1:7.2%}  loss {self.loss:.4f}"

    def measures(self) -> dict[str, str]:
        """Return what was measured, by its title in a table."""
        return {
            "mean average precision": f"{self.mean_average_precision:.2%}",
            "F1, all decisions": f"{self.micro_f1:.2%}",
            "F1, mean over labels": f"{self.macro_f1:.2%}",
            "loss": f"{self.loss:.4f}",
        }

    def class_table(self, class_names: Sequence[str] | None = None) -> str:
        """Return the numbers by label: of all that some image has, or of the worst if these are many."""
        rows = [
            (name, precision, f"{precision:>7.2%}  {f1:>7.2%}  {num_images:>6}")
            for name, (num_images, precision, f1) in self.named(class_names)
            if precision is not None
        ]
        return table_of_classes("label", "labels", "     AP       F1  images", rows)


def evaluate_multi_label(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    ranks: Ranks,
    *,
    num_expected: int,
    num_classes: int,
    flip: bool = False,
    columns: torch.Tensor | None = None,
    forward: Callable[[torch.Tensor], Any] | None = None,
) -> MultiLabelReport:
    """Evaluate a model on this process's share of the images, and report on all of them.

    The arguments are those of `evaluate_batches`, but for these: in `batches`, `labels` are `(B, n)` of 0 and 1, and
    there have to be `sample_ids` `(B,)`; `columns`, int64 `(n,)`, is the model's label for each of the data's, the
    same ones if `None`.

    Raises:
        EvaluationError: If the images are not as many as expected, or none could be read.
        EvaluationInterruptedError: If `should_stop` said yes on some process.
    """
    started = time.perf_counter()
    device = torch.device(ranks.device)
    # logits and targets of an image side by side, then whether it was counted
    table = torch.zeros(num_expected, 2 * num_classes + 1, dtype=torch.float64)
    # broken ones, and interruptions
    counts = torch.zeros(2, dtype=torch.float64)
    with evaluating(model), torch.no_grad():
        for batch, views in outputs_of(model, batches, ranks, flip=flip, forward=forward):
            counts[0] += len(batch.get("bad_images", ()))
            counts[1] += views is None
            if not views:
                continue
            logits = [getattr(view, "logits", view).double().cpu() for view in views]
            if flip:
                logits = [torch.logit(torch.stack([view.sigmoid() for view in logits]).mean(dim=0))]
            rows = batch["sample_ids"]
            # processes have to be added up without one not finite number spoiling the others
            is_finite = logits[0].isfinite().all(dim=1)
            table[rows, :num_classes] = logits[0].where(is_finite[:, None], _NOT_FINITE)
            targets = torch.arange(num_classes) if columns is None else columns
            table[rows[:, None], num_classes + targets] = batch["labels"].double()
            table[rows, -1] += 1
    # Apple's GPUs have no float64, and no other device is asked for a table of this size
    message = ranks.reduce(torch.cat([counts, table.flatten()]).to("cpu" if device.type == "mps" else device)).cpu()
    counts, table = message[:2], message[2:].view(table.shape)
    if counts[1].item():
        raise EvaluationInterruptedError("the evaluation was interrupted")
    return _report(table, int(counts[0]), num_classes, time.perf_counter() - started)


# a logit that no label is predicted for, and that ranks last
_NOT_FINITE = -1e30


def _report(table: torch.Tensor, num_broken: int, num_classes: int, seconds: float) -> MultiLabelReport:
    # only where it is asked for: a second passes while it is imported
    from sklearn.metrics import average_precision_score

    num_expected = len(table)
    is_counted = table[:, -1] == 1
    num_images = int(is_counted.sum())
    if 0 < num_expected == num_broken:
        raise EvaluationError(f"none of the {num_expected} images could be read.")
    if num_images + num_broken != num_expected or (table[:, -1] > 1).any():
        raise EvaluationError(
            f"{int(table[:, -1].sum())} images were counted, and {num_expected - num_broken} were expected: some were "
            "left out or counted twice."
        )
    logits, targets = table[is_counted, :num_classes], table[is_counted, num_classes:-1]
    is_predicted, is_there = logits.sigmoid() >= THRESHOLD, targets > 0
    hits, predicted, there = ((value).sum(dim=0) for value in (is_predicted & is_there, is_predicted, is_there))
    labels = tuple(
        LabelScores(
            int(there[index]),
            float(average_precision_score(is_there[:, index], logits[:, index])) if there[index] else None,
            float(2 * hits[index] / (predicted[index] + there[index])) if there[index] else None,
        )
        for index in range(num_classes)
    )
    present = [scores for scores in labels if scores.average_precision is not None]
    total = int(predicted.sum() + there.sum())
    not_finite = (logits == _NOT_FINITE).any(dim=1)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return MultiLabelReport(
        num_images=num_images,
        num_broken=num_broken,
        num_not_finite=int(not_finite.sum()),
        mean_average_precision=math.fsum(scores.average_precision or 0.0 for scores in present) / max(1, len(present)),
        micro_f1=float(2 * hits.sum()) / total if total else 0.0,
        macro_f1=math.fsum(scores.f1 or 0.0 for scores in present) / max(1, len(present)),
        loss=float("nan") if not_finite.any() else math.fsum(losses.tolist()) / num_images,
        classes=labels,
        seconds=seconds,
    )
