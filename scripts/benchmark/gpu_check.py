# SPDX-License-Identifier: Apache-2.0
"""Times and profiles of SViT on a GPU, in order of importance, until the seconds are used up.

Called by scripts/gpu_check.sh. What breaks is noted and leaves the rest alone: a report is wanted in any case.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scripts.benchmark.contestants import (
    OFFICIAL,
    PEER_FORMS,
    Contestant,
    Peaks,
    Session,
    classifier_contestants,
    measure_peaks,
)
from scripts.benchmark.networks import Network, peer_network, svit_network
from scripts.benchmark.operators import measure_operators, measure_super_tokens
from scripts.benchmark.results import Case, Results
from scripts.benchmark.workloads import TrainingStep
from torch import nn
from torch.nn import functional as F

from svit_hf.benchmark.forms import EAGER, FORMS, Form, logits_of
from svit_hf.benchmark.measuring import comparable_arithmetic, made_up_images, stopwatch_for


class Graphed(nn.Module):
    """CUDA graph of a classifier, captured in the first call: what is left is the time of the GPU."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.graph: Any = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        if pixels.device.type != "cuda":
            return logits_of(self.inner(pixels))
        if self.graph is None:
            self.pixels = pixels.clone()
            dtype, is_on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
            with torch.autocast("cuda", dtype, is_on, cache_enabled=False):
                self.graph, self.logits = capture(lambda: logits_of(self.inner(self.pixels)))
        self.graph.replay()
        return self.logits


class GraphedTrainingStep(TrainingStep):
    """Training step whose forward and backward are one CUDA graph; AdamW follows outside."""

    graph: Any = None

    def forward_and_backward(self, scaler: torch.amp.GradScaler) -> torch.Tensor:
        """Return logits, with the gradients in the weights."""
        if self.pixel_values.device.type != "cuda":
            return super().forward_and_backward(scaler)
        if self.graph is None:
            self.graph, self.logits = capture(self._once)
            self.gradients = [parameter.grad for parameter in self.module.parameters()]
        self.graph.replay()
        # the graph writes them anew each time; zero_grad, and others that train the same module, take them off
        for parameter, gradient in zip(self.module.parameters(), self.gradients, strict=True):
            parameter.grad = gradient
        return self.logits

    def _once(self) -> torch.Tensor:
        for parameter in self.module.parameters():
            parameter.grad = None
        # weights that autocast has cast and cached would be freed before the graph is replayed
        with torch.autocast("cuda", dtype=self.autocast_dtype, cache_enabled=False):
            logits = logits_of(self.module(self.pixel_values)).float()
            loss = F.cross_entropy(logits, self.labels)
        loss.backward()
        return logits.detach()


def capture(work: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """Return a CUDA graph of some work, and the tensor that holds its result after each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def graphed(form: Form) -> Form:
    """Return the form as a CUDA graph."""
    return replace(form, name=f"{form.name}, graph", prepare=lambda model: Graphed(form.prepare(model)))


AUTOCAST = replace(OFFICIAL, name="official operators, autocast")
KERNELS = replace(FORMS["folded-kernels"], name="folded-kernels, compiled", compiles=True)
INFERENCE = (
    AUTOCAST,
    graphed(AUTOCAST),
    OFFICIAL,
    EAGER,
    FORMS["folded"],
    graphed(FORMS["folded"]),
    FORMS["folded-kernels"],
    graphed(FORMS["folded-kernels"]),
    FORMS["kernels"],
)
COMPILED = (FORMS["folded-compiled"], KERNELS, replace(OFFICIAL, name="official operators, compiled", compiles=True))
TRAINING = (OFFICIAL, EAGER, FORMS["kernels"])
PEERS = (PEER_FORMS[0], graphed(PEER_FORMS[0]))


@dataclass
class Check:
    """One run of the check."""

    session: Session
    output: Path
    batch_size: int
    image_size: int
    seconds: float
    results: Results = field(default_factory=Results)
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        """Print a line with the time, and keep it."""
        line = f"[{time.monotonic() - self.started:5.0f} s] {text}"
        print(line, flush=True)
        with (self.output / "times.txt").open("a") as file:
            file.write(f"{line}\n")

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note what fails, and go on."""
        try:
            yield
        except Exception as error:
            self.say(f"FAILED {what}: {type(error).__name__}: {str(error)[:300]}")

    def measure(
        self,
        network: Network,
        forms: Sequence[Form],
        *,
        training: bool = False,
        rounds: int = 5,
        compiles: bool = False,
    ) -> list[Contestant]:
        """Check and time forms of a network, and print their table."""
        rounds = min(rounds, self.session.rounds)
        task = "training" if training else "inference"
        session = replace(self.session, task=task, rounds=rounds, compiles=compiles, say=self.say)
        title = f"{task}, {network.name}, batch {self.batch_size}, {', '.join(session.dtypes)}"
        shape = {"batch_size": self.batch_size, "image_size": self.image_size}
        entries: list[Contestant] = []
        for form in forms:
            with self.noting(f"{network.name} {form.name}"):
                entries += classifier_contestants(network, [form], session, **shape)
        for entry in list(entries) if training else []:
            with self.noting(f"{entry.name}, graph"):
                work = entry.work
                step = GraphedTrainingStep(work.module, work.pixel_values, work.labels, work.autocast_dtype)
                step()
                entries.append(replace(entry, name=f"{entry.name}, graph", work=step))
        with self.noting(title):
            self.keep([session.measure(entries, part="model", title=title, task=task, **shape)])
        return entries

    def profile(self, entries: Sequence[Contestant], names: Sequence[str]) -> None:
        """Write where the time of a call goes, by kernel."""
        is_cuda = self.session.device.type == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * is_cuda
        for entry in entries:
            if not entry.name.endswith(tuple(names)):
                continue
            with self.noting(f"profile of {entry.name}"):
                entry.work()
                calls = min(3, self.session.rounds)
                with torch.profiler.profile(activities=activities) as found:
                    for _ in range(calls):
                        entry.work()
                table = found.key_averages().table(
                    sort_by="self_cuda_time_total" if is_cuda else "self_cpu_time_total",
                    row_limit=32,
                    max_name_column_width=90,
                )
                with (self.output / "profile.txt").open("a") as file:
                    file.write(f"\n== {entry.name}, calls: {calls}\n{table}")

    def measure_parts(self, network: Network, task: str) -> None:
        """Time single operators, and sampling and upsampling alone."""
        session = replace(self.session, task=task, rounds=min(3, self.session.rounds), say=self.say)
        shape = {"batch_size": self.batch_size, "image_size": self.image_size}
        for measure in (measure_operators, measure_super_tokens):
            with self.noting(f"{measure.__name__}, {task}"):
                self.keep(measure(network, session, **shape))

    def keep(self, cases: Sequence[Case]) -> None:
        """Show cases, and add them to the file."""
        self.results.cases.extend(cases)
        self.say(f"\n{Results(cases=list(cases)).text()}\n")
        self.results.write(self.output / "times.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure until the seconds are used up, and return the exit status."""
    parser = argparse.ArgumentParser("gpu_check", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for times.json, times.txt and profile.txt")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--models", nargs="+", default=["small", "base"])
    parser.add_argument("--peers", nargs="*", default=["convnext-t", "swin-t"])
    parser.add_argument("--quick", action="store_true", help="see whether it runs: one call each, nothing compiled")
    parser.add_argument("--warm", action="store_true", help="only compile, to fill the caches of the compiler")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    first, *others = [svit_network(name) for name in options.models]
    peers = [peer_network(name) for name in options.peers]
    stopwatch = stopwatch_for(device)
    peaks = Peaks({}, 0) if options.warm else measure_peaks(["bf16"], device, stopwatch)
    session = Session(device, stopwatch, 5, ["bf16"], peaks)
    if options.quick:
        session = replace(session, rounds=1, min_seconds=0)
    check = Check(session, options.output, options.batch_size, options.image_size, options.seconds)
    compiled = () if options.quick else COMPILED
    of_peers = PEERS if options.quick else (*PEERS, PEER_FORMS[1])
    if options.warm:
        forms = [(first, form) for form in compiled]
        warm(check, forms + [(peer, form) for peer in peers for form in of_peers[len(PEERS) :]])
        return 0
    check.say(f"copy {peaks.copy / 1e12:.2f} TB/s, product {peaks.operations['bf16'] / 1e12:.2f} TFLOP/s")
    check.measure_parts(first, "inference")
    check.profile(check.measure(first, INFERENCE), ("autocast", "folded", "folded-kernels"))
    check.profile(check.measure(first, TRAINING, training=True, rounds=3), ("operators", "kernels"))
    check.measure_parts(first, "training")
    for peer in peers:
        if check.left() > 60:
            check.measure(peer, of_peers, compiles=True)
    for form in compiled:
        if check.left() > 60:
            check.measure(first, [INFERENCE[0], form], compiles=True)
    for network in others:
        if check.left() > 40:
            check.measure(network, [INFERENCE[0], *INFERENCE[4:8]], rounds=3)
    check.say("end")
    return 0


def warm(check: Check, entries: Sequence[tuple[Network, Form]]) -> None:
    """Compile, without measuring."""
    size = check.image_size
    for network, form in entries:
        if check.session.device.type != "cuda" and "kernels" in form.name:
            continue
        check.say(f"compiling {network.name} {form.name}")
        with check.noting(form.name), torch.inference_mode():
            module = form.build(network.build(size).eval(), check.session.device, torch.bfloat16)
            pixels = made_up_images(check.batch_size, size).to(check.session.device, torch.bfloat16)
            module(pixels.contiguous(memory_format=form.memory_format))


if __name__ == "__main__":
    with comparable_arithmetic():
        raise SystemExit(main())
