# SPDX-License-Identifier: Apache-2.0
"""The forms of one classifier, measured side by side on this machine, and which of them to take."""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from svit_hf.benchmark.forms import EAGER, FORMS, QUICK_FORMS, Form, Program, logits_of
from svit_hf.benchmark.measuring import (
    DTYPES,
    Spread,
    comparable_arithmetic,
    is_emulated,
    made_up_images,
    measure_interleaved,
    speed_ratio,
    spread_of,
    stopwatch_for,
)
from svit_hf.benchmark.memory import bytes_of, measure_working_memory
from svit_hf.errors import SViTError
from svit_hf.progress import Progress, say


SEED = 0
# largest difference of a logit from the eager float32 model, as a share of the largest logit; 8 bits are an
# approximation (a fifth of the logits was seen, SViT-S with random weights), and wrong arithmetic is off by more
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.5}


@dataclass(frozen=True)
class Measurement:
    """Speed, memory and outputs of one form.

    Attributes:
        form: Its name.
        dtype: That it computes in.
        batch_size: Images per call.
        image_size: Their edge in pixels.
        images_per_second: Median over the rounds.
        speedup: Times as fast as the eager model in float32, round by round.
        difference: Largest difference of a logit from the eager float32 model, as a share of the largest logit.
        is_right: Whether the difference is what this arithmetic explains.
        memory_bytes: Weights, and what a call needs on top at its peak; `None` where nobody counts.
    """

    form: str
    dtype: str
    batch_size: int
    image_size: int
    images_per_second: float
    speedup: Spread
    difference: float
    is_right: bool
    memory_bytes: int | None


@dataclass(frozen=True)
class Comparison:
    """All measurements of a model.

    Attributes:
        measurements: In the order of batch sizes, dtypes and forms.
        left_out: What could not be measured, and why.
    """

    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def best(self, batch_size: int, dtypes: Sequence[str] = (*DTYPES, "int8")) -> Measurement:
        """Return the fastest form whose outputs are right; the eager model, unless another is faster beyond noise.

        Args:
            batch_size: One that was measured.
            dtypes: Which of those that were measured count.
        """
        candidates = [row for row in self.measurements if row.batch_size == batch_size and row.is_right]
        eager = next(row for row in self.measurements if row.batch_size == batch_size)
        faster = [row for row in candidates if row.dtype in dtypes and row.speedup.lower_quartile > 1]
        return max(faster, key=lambda row: row.speedup.median, default=eager)


def compare_forms(
    model: nn.Module,
    *,
    forms: Sequence[str] = QUICK_FORMS,
    batch_sizes: Sequence[int] = (1, 8),
    image_size: int | None = None,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    rounds: int = 6,
    device: str | torch.device | None = None,
) -> Comparison:
    """Measure a classifier in several forms, on the same made-up images, in turns.

    Args:
        model: The classifier, which is left as it is.
        forms: Names in `FORMS`; the eager model always takes part.
        batch_sizes: Images per call.
        image_size: Their edge in pixels; by default that of the model's config.
        dtypes: Names in `DTYPES`; one that the device only emulates is left out.
        rounds: How often each form has its turn.
        device: Where; the fastest there is by default.

    Returns:
        What was measured.

    Raises:
        SViTError: If an argument is impossible.
    """
    for name, given, allowed in (("forms", forms, FORMS), ("dtypes", dtypes, DTYPES)):
        if unknown := set(given) - set(allowed):
            raise SViTError(f"`{name}` has {min(unknown)!r}; allowed are {', '.join(allowed)}.")
    if rounds < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise SViTError(f"`rounds` is {rounds}, `batch_sizes` are {tuple(batch_sizes)}; both have to be at least 1.")
    place = find_device(device)
    torch.manual_seed(SEED)
    source = copy.deepcopy(model).float().cpu().eval()
    edge = image_size or _edge_of(source)
    result = Comparison()
    with comparable_arithmetic():
        contestants = _build(source, forms, dtypes, place, result.left_out)
        with Progress(len(batch_sizes) * rounds, "rounds") as progress:
            for batch_size in batch_sizes:
                progress.say(f"measuring batches of {batch_size}")
                images = made_up_images(batch_size, edge, getattr(_config_of(source), "num_channels", 3)).to(place)
                result.measurements.extend(_measure(contestants, images, place, rounds, result.left_out, progress))
    return result


def find_device(name: str | torch.device | None) -> torch.device:
    """Return a device that can be used; the fastest there is for `None`.

    Raises:
        SViTError: If it cannot be used.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise SViTError(f"`device` is {str(name)!r}, which cannot be used: {error}") from error
    return device


def _build(
    model: nn.Module,
    forms: Sequence[str],
    dtypes: Sequence[str],
    device: torch.device,
    left_out: list[str],
) -> dict[tuple[Form, str], nn.Module]:
    """Make every form in every dtype that goes with it; what cannot be made is noted."""
    usable = []
    for dtype in dict.fromkeys(["fp32", *dtypes]):
        if is_emulated(dtype, device, stopwatch_for(device)):
            left_out.append(f"{dtype}: this device only emulates it")
        else:
            usable.append(dtype)
    built = {}
    for dtype in usable:
        for form in [EAGER, *(FORMS[name] for name in FORMS if name in forms and name != EAGER.name)]:
            if device.type != "cpu" and (form.is_program or form.needs_cpu):
                _note(left_out, f"{form.name}: measured on a CPU alone")
                continue
            if form.is_program and dtype != "fp32":
                continue
            say(f"making {form.name}, {dtype}")
            try:
                built[form, dtype] = form.build(model, device, DTYPES[dtype])
            # ValueError: kernels that cannot run here
            except (SViTError, ValueError) as error:
                _note(left_out, f"{form.name}: {error}")
    return built


def _note(left_out: list[str], reason: str) -> None:
    if reason not in left_out:
        left_out.append(reason)


def _measure(
    contestants: dict[tuple[Form, str], nn.Module],
    images: torch.Tensor,
    device: torch.device,
    rounds: int,
    left_out: list[str],
    progress: Progress,
) -> list[Measurement]:
    works: dict[str, Callable[[], torch.Tensor]] = {}
    differences = {}
    expected = torch.empty(0)
    for (form, dtype), module in list(contestants.items()):
        pixels = images.to(DTYPES[dtype]).contiguous(memory_format=form.memory_format)
        work = _inference(module, pixels)
        label = f"{form.name}, {dtype}"
        try:
            found = work().float()
        except (SViTError, ValueError, torch.OutOfMemoryError, torch._dynamo.exc.TorchDynamoException) as error:
            _note(left_out, f"{form.name}: {str(error).strip().splitlines()[0]}")
            gc.collect()
            continue
        expected = expected if works else found
        differences[label] = float((found - expected).abs().max() / expected.abs().max())
        works[label] = work
    seconds = measure_interleaved(works, stopwatch_for(device), rounds=rounds, after_round=progress.advance)
    rows = []
    for (form, dtype), module in contestants.items():
        if (label := f"{form.name}, {dtype}") not in works:
            continue
        working = measure_working_memory(works[label], device)
        rows.append(
            Measurement(
                form=form.name,
                dtype="int8" if form.is_int8 else dtype,
                batch_size=len(images),
                image_size=images.shape[-1],
                images_per_second=len(images) / spread_of(seconds[label]).median,
                speedup=speed_ratio(next(iter(seconds.values())), seconds[label]),
                difference=differences[label],
                # written so that NaN is wrong too
                is_right=differences[label] <= TOLERANCE["int8" if form.is_int8 else dtype],
                memory_bytes=None if working is None else working + state_bytes(module),
            )
        )
    return rows


def _inference(module: nn.Module, pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
    def work() -> torch.Tensor:
        with torch.inference_mode():
            return logits_of(module(pixels))

    return work


def state_bytes(module: nn.Module) -> int:
    """Return the bytes of weights and statistics, or of an exported program."""
    return module.num_bytes if isinstance(module, Program) else bytes_of([*module.parameters(), *module.buffers()])


def _config_of(model: Any) -> Any:
    return getattr(model, "config", None)


def _edge_of(model: nn.Module) -> int:
    size = getattr(_config_of(model), "image_size", 224)
    return size if isinstance(size, int) else max(size)
