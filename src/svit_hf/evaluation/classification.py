# SPDX-License-Identifier: Apache-2.0
"""Evaluate a classifier: every image counts once, whatever the processes, batches and broken files.

Each process adds up counts over its own share of the images, in float64 and without rounding; one sum over processes
follows, and the total has to be what the data holds. Nothing is padded, gathered or averaged twice. What the labels of
the data mean to the model is in `label_maps.py`, how a report looks in `report.py`.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from svit_hf.errors import EvaluationError
from svit_hf.evaluation.label_maps import NO_CLASS, LabelMap
from svit_hf.evaluation.metrics import rank_classes
from svit_hf.evaluation.outputs import EvaluationInterruptedError, Ranks, evaluating, outputs_of
from svit_hf.evaluation.report import ClassCounts, ClassificationReport


NUM_BINS = 15
# losses and confidences are rounded to whole multiples of this, of which float64 adds up 2 ** 53 without error: sums
# are the same in any order, whatever the workers and processes. The rounding is below the precision of float32 logits,
# and 2 ** 27 far above the sum of losses of any data set
QUANTUM = 2.0**-26


def evaluate_batches(  # noqa: PLR0913 - what is measured, how, and over which processes
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    num_expected: int,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    flip: bool = False,
    label_map: LabelMap | None = None,
    should_stop: Callable[[], bool] | None = None,
    forward: Callable[[torch.Tensor], Any] | None = None,
    num_classes: int | None = None,
) -> ClassificationReport:
    """Evaluate a model on this process's share of the images, and report on all of them.

    The model is in eval mode meanwhile; afterwards every module has its mode again. Processes may have different
    numbers of batches, or none: they meet in `reduce`, once, at the end. For the same reason a model wrapped in
    `DistributedDataParallel`, whose forward exchanges buffers, is unwrapped.

    Args:
        model: The model. Called with `pixel_values`, it returns logits `(B, num_classes)`, or something that has them
            as `.logits`.
        batches: Mappings with `pixel_values` `(B, C, H, W)`, `labels` `(B,)` and, where there are any, `bad_images`:
            those that could not be read, and are not among the tensors. A label map by image needs `sample_ids`
            `(B,)`.
        num_expected: Images in the data, over all processes, broken ones among them.
        reduce: Adds up a float64 tensor over all processes, and gives everybody the sum.
        device: Where the model is.
        autocast_dtype: Precision of the forward pass; that of the model if `None`.
        flip: Average the probabilities of each image and of its mirror image. Probabilities and not logits: a mean of
            distributions is one, which calibration needs, while logits of two images have no common zero.
        label_map: What the labels mean; if `None`, they are classes of the model.
        should_stop: Asked before each batch, about this process. If it says yes anywhere, nobody gets a report.
        forward: What to call instead of `model`, with the same result.
        num_classes: Classes of the model; `model.config.num_labels` if `None`.

    Returns:
        The report, the same on every process but for the seconds.

    Raises:
        EvaluationError: If the images are not as many as expected, none could be read, or a label is no class.
        EvaluationInterruptedError: If `should_stop` said yes on some process.
    """
    started = time.perf_counter()
    ranks = Ranks(device, autocast_dtype, reduce, should_stop=should_stop or (lambda: False))
    device = torch.device(device)
    num_classes = _num_classes(model) if num_classes is None else num_classes
    # Apple's GPUs have no float64
    counts = _Counts(num_classes, torch.device("cpu") if device.type == "mps" else device)
    excluded = None if label_map is None else label_map.excluded(num_classes).to(device)
    with evaluating(model), torch.no_grad():
        for batch, views in outputs_of(model, batches, ranks, flip=flip, forward=forward):
            counts.of["broken"] += len(batch.get("bad_images", ()))
            counts.of["interruptions"] += views is None
            if not views:
                continue
            targets = _targets(batch, label_map, num_classes)
            is_kept = (targets != NO_CLASS).any(dim=1)
            counts.of["left_out"] += (~is_kept).sum()
            counts.add(_log_probabilities(views, excluded, num_classes)[is_kept.to(device)], targets[is_kept])
    counts.values.copy_(reduce(counts.values))
    if counts.of["interruptions"].item():
        raise EvaluationInterruptedError("the evaluation was interrupted")
    return counts.report(num_expected, seconds=time.perf_counter() - started)


class _Counts:
    """All counts: views, by name, of one vector that can be added up over processes."""

    def __init__(self, num_classes: int, device: torch.device):
        sizes = {
            **dict.fromkeys(
                ("images", "hits", "top5_hits", "broken", "left_out", "not_finite", "interruptions", "loss"), 1
            ),
            **dict.fromkeys(("class_images", "class_hits"), num_classes),
            **dict.fromkeys(("bin_hits", "bin_confidence"), NUM_BINS),
        }
        self.values = torch.zeros(sum(sizes.values()), dtype=torch.float64, device=device)
        self.of = dict(zip(sizes, self.values.split(list(sizes.values())), strict=True))

    def add(self, log_probabilities: torch.Tensor, targets: torch.Tensor) -> None:
        """Count images.

        Args:
            log_probabilities: Shape `(B, num_classes)`, float32.
            targets: Right classes, shape `(B, n)`, filled up with `NO_CLASS`. An image with several is one of that
                which the model ranks highest.
        """
        device = self.values.device
        log_probabilities, targets = log_probabilities.to(device), targets.to(device)
        scores = log_probabilities.gather(1, targets.clamp(min=0)).masked_fill(targets == NO_CLASS, -torch.inf)
        best = scores.argmax(dim=1, keepdim=True)
        references, scores = targets.gather(1, best)[:, 0], scores.gather(1, best)[:, 0]
        # an overflow is no answer, and never right by accident
        is_finite = ~log_probabilities.isnan().any(dim=1)
        ranked = rank_classes(log_probabilities).where(is_finite[:, None], NO_CLASS)
        is_hit = (ranked[:, 0] == references).double()
        confidence = _rounded(log_probabilities.amax(dim=1).exp().double().nan_to_num(0))
        bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)

        self.of["images"] += len(references)
        self.of["hits"] += is_hit.sum()
        self.of["top5_hits"] += (ranked == references[:, None]).sum()
        self.of["not_finite"] += (~is_finite).sum()
        self.of["loss"] -= _rounded(scores.double()).sum()
        self.of["class_images"].index_add_(0, references, torch.ones_like(is_hit))
        self.of["class_hits"].index_add_(0, references, is_hit)
        self.of["bin_hits"].index_add_(0, bins, is_hit)
        self.of["bin_confidence"].index_add_(0, bins, confidence)

    def report(self, num_expected: int, seconds: float) -> ClassificationReport:
        """Turn the counts of all processes into a report.

        The expected calibration error is the mean distance, weighted by images, between the accuracy and the mean
        confidence of each bin.

        Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3; Naeini et al., AAAI 2015.
        """
        of = {name: counts.cpu() for name, counts in self.of.items()}
        num_broken, num_left_out = int(of["broken"]), int(of["left_out"])
        num_images = int(of["images"])
        if num_images + num_broken + num_left_out != num_expected:
            raise EvaluationError(
                f"{num_images + num_broken + num_left_out} images were counted, and `num_expected` is {num_expected}: "
                "some were left out or counted twice."
            )
        if not num_images:
            raise EvaluationError(f"none of the {num_expected} images could be read and has a class of the model.")
        return ClassificationReport(
            num_images=num_images,
            num_hits=int(of["hits"]),
            num_broken=num_broken,
            num_left_out=num_left_out,
            num_not_finite=int(of["not_finite"]),
            accuracy=int(of["hits"]) / num_images,
            top5_accuracy=int(of["top5_hits"]) / num_images,
            loss=float(of["loss"]) / num_images,
            calibration_error=float((of["bin_hits"] - of["bin_confidence"]).abs().sum()) / num_images,
            classes=tuple(
                ClassCounts(int(images), int(hits))
                for images, hits in zip(of["class_images"], of["class_hits"], strict=True)
            ),
            seconds=seconds,
        )


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return (values / QUANTUM).round() * QUANTUM


def _num_classes(model: nn.Module) -> int:
    # averaged and compiled models wrap the one that has a config
    config = getattr(model, "config", None) or getattr(getattr(model, "module", None), "config", None)
    if config is None:
        raise EvaluationError(f"`num_classes` has to be given for a {type(model).__name__}, which has no `config`.")
    num_labels: int = config.num_labels
    return num_labels


def _targets(batch: Mapping[str, Any], label_map: LabelMap | None, num_classes: int) -> torch.Tensor:
    """Return the right classes of images, `(B, n)`, filled up with `NO_CLASS`."""
    labels = batch["labels"]
    if label_map is not None:
        return label_map.targets_of(labels, batch.get("sample_ids"))
    if not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise EvaluationError(
            f"the data has label {wrong}, and the model has the classes 0 to {num_classes - 1}. Labels of -1 are "
            "those of a split without labels."
        )
    return labels[:, None]


def _log_probabilities(outputs: list[Any], excluded: torch.Tensor | None, num_classes: int) -> torch.Tensor:
    """Average the probabilities of several views: `(B, num_classes)`, as float32 logarithms."""
    views = []
    for output in outputs:
        logits = getattr(output, "logits", output)
        if logits.shape[-1] != num_classes:
            raise EvaluationError(f"`num_classes` is {num_classes}, and the model gives {logits.shape[-1]} logits.")
        allowed = logits.float() if excluded is None else logits.float().masked_fill(excluded, -torch.inf)
        views.append(allowed.log_softmax(dim=-1))
    return torch.stack(views).logsumexp(dim=0) - math.log(len(views))
