# SPDX-License-Identifier: Apache-2.0
"""Build the contestants of a case, let them pass the correctness gate, and measure them side by side."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from svit_hf.benchmark.forms import PEER_REFERENCE, SVIT_REFERENCE, Form, Situation
from svit_hf.benchmark.gate import GateError, check_outputs
from svit_hf.benchmark.machine import DTYPES, Peaks
from svit_hf.benchmark.measuring import Stopwatch, measure_interleaved
from svit_hf.benchmark.memory import measure_working_memory
from svit_hf.benchmark.networks import NUM_LABELS, Network, SViTNetwork, count_macs, made_up_images
from svit_hf.benchmark.results import Case, Cost, Memory, make_row
from svit_hf.benchmark.workloads import InferenceStep, TrainingStep, Workload


SEED = 0
# forward, and backward with respect to weights and to inputs
TRAINING_OPERATIONS = 3


@dataclass(frozen=True)
class Contestant:
    """Hold what is measured, and what is known about it before.

    Attributes:
        name: Network and form.
        dtype: Name in `DTYPES`.
        workload: What to call.
        cost: What a call does.
        error: Relative error of the results, which passed the gate; `None` where there is nothing to compare with.
    """

    name: str
    dtype: str
    workload: Workload
    cost: Cost
    error: float | None = None


@dataclass(frozen=True)
class Session:
    """Hold what all cases of a run share.

    Attributes:
        device: Where it runs.
        stopwatch: Gives the seconds of calls.
        repeats: Rounds per case.
        dtypes: Names in `DTYPES`.
        peaks: Measured before.
        say: Takes lines about progress.
        left_out: Who does not take part, and why.
    """

    device: torch.device
    stopwatch: Stopwatch
    repeats: int
    dtypes: Sequence[str]
    peaks: Peaks
    say: Callable[[str], None] = lambda text: None
    left_out: list[str] = field(default_factory=list)

    def measure(
        self, contestants: Sequence[Contestant], *, part: str, title: str, task: str, batch_size: int, image_size: int
    ) -> Case:
        """Measure contestants side by side: first time, then memory."""
        by_label = {f"{contestant.name}, {contestant.dtype}": contestant for contestant in contestants}
        assert len(by_label) == len(contestants), "two contestants with one name"
        timings = measure_interleaved(
            {label: contestant.workload for label, contestant in by_label.items()},
            self.stopwatch,
            repeats=self.repeats,
            say=lambda label: self.say(f"  {label}"),
        )
        first = next(iter(timings.values()))
        rows = [
            make_row(
                contestant.name,
                contestant.dtype,
                timings[label],
                first=first,
                cost=contestant.cost,
                peaks=self.peaks,
                memory=Memory(
                    contestant.workload.state_bytes(), measure_working_memory(contestant.workload, self.device)
                ),
                error=contestant.error,
            )
            for label, contestant in by_label.items()
        ]
        return Case(part, title, task, batch_size, image_size, rows)

    @contextmanager
    def leaving_out(self, name: str, *, is_foreign: bool = False) -> Iterator[None]:
        """Go on without a contestant that does not fit into memory or that the compiler fails on, and note why.

        Args:
            name: Of the contestant.
            is_foreign: Whether it is code of others, which may fail for reasons of its own, such as small images.
        """
        expected: tuple[type[Exception], ...] = (torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException)
        if is_foreign:
            expected = (Exception,)
        try:
            yield
        except GateError:
            raise
        except expected as error:
            reason = str(error).strip().partition("\n")[0]
            self.say(f"  left out: {name}: {reason}")
            self.left_out.append(f"{name}: {type(error).__name__}: {reason}")
            gc.collect()


def reference_form(network: Network) -> Form:
    """Return the form that the others are compared with: plain PyTorch operators."""
    return SVIT_REFERENCE if isinstance(network, SViTNetwork) else PEER_REFERENCE


def classifier_contestants(
    network: Network,
    forms: Sequence[Form],
    situation: Situation,
    session: Session,
    *,
    batch_size: int,
    image_size: int,
) -> list[Contestant]:
    """Build a network in several forms and dtypes, with the same weights and images, and check their results.

    Args:
        network: What to build.
        forms: How; those that do not apply are passed by.
        situation: What is measured, and where.
        session: Names the dtypes.
        batch_size: Images per call.
        image_size: Their edge in pixels.

    Returns:
        The contestants, in the order of dtypes and forms.

    Raises:
        GateError: If the results of one are wrong.
    """
    torch.manual_seed(SEED)
    model = network.build(image_size).train(situation.task == "training")
    images = made_up_images(batch_size, image_size)
    labels = torch.randint(getattr(getattr(model, "config", None), "num_labels", NUM_LABELS), (batch_size,))
    macs = count_macs(model, image_size)
    operations = None if macs is None else 2 * macs * batch_size
    if operations is not None and situation.task == "training":
        operations *= TRAINING_OPERATIONS

    def workload(form: Form, dtype: str) -> Workload:
        module = form.make(model, dtype, situation)
        pixels = images.to(situation.device).contiguous(memory_format=form.memory_format)
        half = None if dtype == "fp32" else DTYPES[dtype]
        if situation.task == "training":
            return TrainingStep(module, pixels, labels.to(situation.device), half)
        if form.autocasts:
            return InferenceStep(module, pixels, half)
        return InferenceStep(module, pixels.to(DTYPES[dtype]))

    expected = workload(reference_form(network), "fp32").outputs()
    contestants = []
    for dtype in session.dtypes:
        for form in forms:
            if not form.applies(dtype, situation):
                continue
            name = f"{network.name} {form.name}"
            session.say(f"  checking {name}, {dtype}")
            with session.leaving_out(f"{name}, {dtype}"):
                work = workload(form, dtype)
                error = check_outputs(name, "int8" if form.is_int8 else dtype, work.outputs(), expected)
                contestants.append(Contestant(name, dtype, work, Cost(batch_size, operations), error))
    return contestants
