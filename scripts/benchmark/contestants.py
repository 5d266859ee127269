# SPDX-License-Identifier: Apache-2.0
"""The contestants of a case: built, checked, and measured side by side."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scripts.benchmark.networks import NUM_LABELS, Network, count_macs
from scripts.benchmark.official_operators import with_official_operators
from scripts.benchmark.results import Case, Row
from scripts.benchmark.workloads import InferenceStep, TrainingStep, Workload
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.forms import EAGER, FORMS, Form, run_on
from svit_hf.benchmark.measuring import (
    DTYPES,
    MIN_SECONDS,
    Stopwatch,
    best_seconds,
    made_up_images,
    measure_interleaved,
    product_speed,
    speed_ratio,
    spread_of,
)
from svit_hf.benchmark.memory import measure_working_memory
from svit_hf.errors import SViTError
from svit_hf.training.recomputation import selective_checkpointing


SEED = 0
# largest relative error in norm against the eager float32 model with the same weights and images; 0.22 was seen in 8
# bits, SViT-S with random weights in ONNX Runtime
RESULTS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.5}
GRADIENTS_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-1, "fp16": 5e-2}
# forward, and backward with respect to weights and to inputs
TRAINING_OPERATIONS = 3


class GateError(SViTError):
    """Contestant whose results are wrong; no time of the run is shown then."""

    exit_code = 1


def _checkpointed(**kwargs: Any) -> Callable[[Any], nn.Module]:
    def prepare(model: Any) -> nn.Module:
        model.gradient_checkpointing_enable(kwargs)
        return run_on("eager")(model)

    return prepare


OFFICIAL = Form("official operators", with_official_operators, memory_format=torch.contiguous_format)
# the first is what ratios refer to
INFERENCE_FORMS = (
    OFFICIAL,
    replace(OFFICIAL, name="official operators, autocast"),
    replace(OFFICIAL, name="official operators, compiled", compiles=True),
    *FORMS.values(),
)
TRAINING_FORMS = (
    OFFICIAL,
    replace(OFFICIAL, name="official operators, compiled", compiles=True),
    EAGER,
    Form("selective checkpointing", _checkpointed(**selective_checkpointing())),
    Form("full checkpointing", _checkpointed(use_reentrant=False)),
    FORMS["kernels"],
    replace(EAGER, name="compiled", compiles=True),
    replace(FORMS["kernels"], name="kernels, compiled", compiles=True),
)
PEER_FORMS = (Form("eager", lambda model: model), Form("compiled", lambda model: model, compiles=True))
GROWTH_FORMS = (OFFICIAL, EAGER, FORMS["folded"])


@dataclass(frozen=True)
class Peaks:
    """Highest speeds that were measured in the same run: operations per second by dtype, bytes per second."""

    operations: dict[str, float]
    copy: float


@dataclass(frozen=True)
class Session:
    """What all cases of a run share."""

    device: torch.device
    stopwatch: Stopwatch
    rounds: int
    dtypes: Sequence[str]
    peaks: Peaks
    task: str = "inference"
    compiles: bool = False
    runs_programs: bool = False
    say: Callable[[str], None] = lambda text: None
    left_out: list[str] = field(default_factory=list)
    min_seconds: float = MIN_SECONDS
    # of `time.monotonic`; nothing is compiled after it
    deadline: float = math.inf

    def takes(self, form: Form, dtype: str) -> bool:
        """Tell whether a form takes part in a dtype."""
        return (
            (self.compiles or not form.compiles)
            and (self.device.type == "cuda" or "kernels" not in form.name)
            and (self.device.type == "cpu" or not form.needs_cpu)
            and not ("autocast" in form.name and dtype == "fp32")
            and (not form.is_program or (self.runs_programs and dtype == "fp32" and self.device.type == "cpu"))
        )

    @contextmanager
    def leaving_out(self, name: str, *, is_foreign: bool = False) -> Iterator[None]:
        """Go on without a contestant that cannot be made, or whose code is that of others and fails; note why."""
        expected = (SViTError, ValueError, torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException)
        try:
            yield
        except GateError:
            raise
        except Exception as error:
            if not is_foreign and not isinstance(error, expected):
                raise
            reason = f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self.say(f"  left out: {reason}")
            self.left_out.append(reason)
            gc.collect()

    def measure(self, contestants: "Sequence[Contestant]", **case: Any) -> Case:
        """Measure contestants side by side, first time, then memory; `case` says what, as in `Case`."""
        by_label = {f"{contestant.name}, {contestant.dtype}": contestant for contestant in contestants}
        assert len(by_label) == len(contestants), "two contestants with one name"
        seconds = measure_interleaved(
            {label: contestant.work for label, contestant in by_label.items()},
            self.stopwatch,
            rounds=self.rounds,
            min_seconds=self.min_seconds,
        )
        first = next(iter(seconds.values()))
        return Case(rows=[self._row(by_label[label], seconds[label], first) for label in seconds], **case)

    def _row(self, contestant: "Contestant", seconds: Sequence[float], first: Sequence[float]) -> Row:
        time = spread_of(seconds)
        bounds = []
        share_of_peak = None
        if contestant.operations is not None:
            bounds.append(contestant.operations / self.peaks.operations[contestant.dtype])
            share_of_peak = bounds[0] / time.median
        if contestant.moved_bytes is not None:
            bounds.append(contestant.moved_bytes / self.peaks.copy)
        state = contestant.work.state_bytes()
        # that of a single operator says little
        working = measure_working_memory(contestant.work, self.device) if contestant.images else None
        return Row(
            name=contestant.name,
            dtype=contestant.dtype,
            seconds=list(seconds),
            quartiles=list(time),
            ratio=list(speed_ratio(first, seconds)),
            images_per_second=contestant.images / time.median if contestant.images else None,
            giga_macs=None
            if contestant.operations is None
            else contestant.operations / 2e9 / max(contestant.images, 1),
            share_of_peak=share_of_peak,
            share_of_bound=max(bounds) / time.median if contestant.moved_bytes is not None else None,
            state_bytes=state,
            peak_bytes=None if working is None else state + working,
            error=contestant.error,
        )


@dataclass(frozen=True)
class Contestant:
    """Work with what is known about it before it is timed.

    Attributes:
        name: Network and form.
        dtype: Name in `DTYPES`.
        work: What to call.
        error: Relative error of the results, which passed the gate.
        images: Images per call; 0 for single operators.
        operations: Arithmetic that the result needs, a multiply-accumulate being two; `None` where nobody counts.
        moved_bytes: Bytes that have to be read and written in any case; `None` where nobody counts.
    """

    name: str
    dtype: str
    work: Workload
    error: float
    images: int = 0
    operations: int | None = None
    moved_bytes: int | None = None


def measure_peaks(dtypes: Sequence[str], device: torch.device, stopwatch: Stopwatch) -> Peaks:
    """Measure what bounds contestants: matrix products or 1x1 convolutions, whichever are faster, and copies."""
    is_cuda = device.type == "cuda"
    batch, channels, out_channels, edge = (64, 512, 2048, 56) if is_cuda else (8, 256, 1024, 28)
    operations = {}
    for dtype in dtypes:
        images = torch.randn(batch, channels, edge, edge).to(device, DTYPES[dtype], memory_format=torch.channels_last)
        weight = torch.randn(out_channels, channels, 1, 1).to(device, DTYPES[dtype])
        seconds = best_seconds(lambda images=images, weight=weight: F.conv2d(images, weight), stopwatch)
        convolution = 2 * batch * edge**2 * channels * out_channels / seconds
        operations[dtype] = max(convolution, product_speed(dtype, 8192 if is_cuda else 1024, device, stopwatch))
    source = torch.ones(2**28 if is_cuda else 2**25, device=device)
    target = torch.empty_like(source)
    return Peaks(operations, 2 * source.nbytes / best_seconds(lambda: target.copy_(source), stopwatch))


def check_outputs(
    name: str, arithmetic: str, outputs: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> float:
    """Return the largest relative error in norm of what a contestant computed.

    Raises:
        GateError: If an error is larger than its tolerance, or no number at all.
    """
    errors = {}
    for output, reference in expected.items():
        found = outputs[output]
        if found.shape != reference.shape:
            raise GateError(f"{name}: {output} have the shape {tuple(found.shape)}, not {tuple(reference.shape)}.")
        errors[output] = float((found - reference).norm() / reference.norm())
        tolerance = (GRADIENTS_TOLERANCE if output == "gradients" else RESULTS_TOLERANCE)[arithmetic]
        # written so that NaN is red too
        if not errors[output] <= tolerance:
            raise GateError(
                f"{name}: {output} differ from those of the eager float32 model by {errors[output]:.2e} (relative, in "
                f"norm); allowed is {tolerance:.0e} in {arithmetic}. No times are shown."
            )
    return max(errors.values())


def classifier_contestants(
    network: Network, forms: Sequence[Form], session: Session, *, batch_size: int, image_size: int
) -> list[Contestant]:
    """Build a network in several forms and dtypes, with the same weights and images, and check their results."""
    torch.manual_seed(SEED)
    is_training = session.task == "training"
    model = network.build(image_size).train(is_training)
    images = made_up_images(batch_size, image_size)
    labels = torch.randint(getattr(getattr(model, "config", None), "num_labels", NUM_LABELS), (batch_size,))
    macs = count_macs(model, image_size)
    operations = None if macs is None else 2 * macs * batch_size * (TRAINING_OPERATIONS if is_training else 1)

    def step(form: Form, dtype: str) -> Workload:
        casts = is_training or "autocast" in form.name
        module = form.build(model, session.device, torch.float32 if casts else DTYPES[dtype])
        pixels = images.to(session.device).contiguous(memory_format=form.memory_format)
        half = DTYPES[dtype] if casts and dtype != "fp32" else None
        if is_training:
            return TrainingStep(module, pixels, labels.to(session.device), half)
        return InferenceStep(module, pixels if casts else pixels.to(DTYPES[dtype]), half)

    reference = EAGER if network.config is not None else PEER_FORMS[0]
    expected = step(reference, "fp32").outputs()
    contestants = []
    for dtype in session.dtypes:
        for form in forms:
            if session.takes(form, dtype):
                name = f"{network.name} {form.name}"
                session.say(f"  {name}, {dtype}")
                if form.compiles and time.monotonic() > session.deadline:
                    session.left_out.append(f"{name}, {dtype}, batch {batch_size}: no time left to compile")
                    continue
                with session.leaving_out(f"{name}, {dtype}"):
                    work = step(form, dtype)
                    error = check_outputs(name, "int8" if form.is_int8 else dtype, work.outputs(), expected)
                    contestants.append(Contestant(name, dtype, work, error, batch_size, operations))
    return contestants


def measure_classifiers(
    entries: Sequence[tuple[Network, Sequence[Form]]], session: Session, *, part: str, batch_size: int, image_size: int
) -> Case:
    """Measure networks in their forms, in one interleaved run."""
    title = f"{session.task}, {entries[0][0].name} and others: batch {batch_size}, {image_size} pixels"
    session.say(title)
    contestants: list[Contestant] = []
    for network, forms in entries:
        with session.leaving_out(f"{network.name}, {image_size} pixels", is_foreign=network.config is None):
            contestants += classifier_contestants(
                network, forms, session, batch_size=batch_size, image_size=image_size
            )
    return session.measure(
        contestants, part=part, title=title, task=session.task, batch_size=batch_size, image_size=image_size
    )
