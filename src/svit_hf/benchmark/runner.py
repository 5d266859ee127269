# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: settle the process, measure the peaks, then every case that was asked for."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from svit_hf.benchmark.classifiers import measure_classifiers, measure_growth
from svit_hf.benchmark.contestants import Session
from svit_hf.benchmark.forms import Addition, Situation
from svit_hf.benchmark.machine import describe_machine, is_emulated, measure_peaks, use_exact_float32
from svit_hf.benchmark.measuring import Stopwatch, stopwatch_for
from svit_hf.benchmark.networks import peer_network, svit_network
from svit_hf.benchmark.official_operators import import_baseline
from svit_hf.benchmark.operators import measure_operators, measure_super_tokens
from svit_hf.benchmark.programs import Programs
from svit_hf.benchmark.results import Case, Results
from svit_hf.errors import SViTError
from svit_hf.extras import missing_packages


if TYPE_CHECKING:
    from svit_hf.benchmark.command import BenchmarkCommand

GROWTH_SIZES = (224, 384, 512, 768, 1024)
DEFAULT_SIZES = (224,)
# larger cells in stages 3 and 4, where the published layouts attend among all tokens
LARGER_CELLS = ([8, 4, 2, 1], [16, 8, 2, 1])


def run_benchmark(
    options: "BenchmarkCommand", *, say: Callable[[str], None], stopwatch: Stopwatch | None = None
) -> Results:
    """Measure what the arguments of the command ask for.

    Args:
        options: The arguments, checked as far as that goes without PyTorch.
        say: Takes lines about progress.
        stopwatch: Gives the seconds of calls; the device's own by default.

    Returns:
        The results.

    Raises:
        SViTError: If an argument is impossible, or the results of a contestant are wrong.
    """
    device = _find_device(options.device)
    stopwatch = stopwatch or stopwatch_for(device)
    left_out: list[str] = []
    situation = Situation(
        task=options.task,
        device=device,
        does_compile=options.compile,
        baseline=import_baseline(options.baseline) if options.baseline else None,
        additions=_find_additions(options, device, left_out),
    )
    # names are checked before minutes are spent
    svit_network(options.model)
    for name in options.peers:
        peer_network(name)
    use_exact_float32()
    # falling back to the eager code without a word would put its time under the name of the compiled one
    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.fail_on_recompile_limit_hit = True

    say("measuring the peaks of this machine")
    peaks = measure_peaks(list(options.dtype), device, stopwatch)
    emulated = [dtype for dtype in options.dtype if is_emulated(dtype, peaks.matrix_product)]
    if len(emulated) == len(options.dtype):
        raise SViTError(f"`dtype` is {' '.join(options.dtype)}, which this device only emulates; use fp32.")
    speed = peaks.matrix_product
    left_out += [
        f"{dtype}: emulated here, at {speed[dtype] / speed['fp32']:.0%} of fp32's speed" for dtype in emulated
    ]
    dtypes = [dtype for dtype in options.dtype if dtype not in emulated]
    session = Session(device, stopwatch, options.repeats, dtypes, peaks, say, left_out)
    with Programs(say) as programs:
        cases = _measure(options, replace(situation, programs=programs), session)
    machine = describe_machine(device) | {
        "command": shlex.join(["svit-hf", *sys.argv[1:]]),
        "peaks": asdict(peaks),
        "left_out": session.left_out,
    }
    return Results([machine], cases)


def _measure(options: "BenchmarkCommand", situation: Situation, session: Session) -> list[Case]:
    network = svit_network(options.model)
    peers = [peer_network(name) for name in options.peers]
    if options.part == "growth":
        config = network.config
        cells = [sizes for sizes in LARGER_CELLS if len(sizes) == config.num_stages]
        return [
            case
            for batch_size in options.batch_size
            for case in measure_growth(
                network,
                [svit_network(options.model, sizes) for sizes in cells],
                peers,
                situation,
                session,
                batch_size=batch_size,
                image_sizes=options.image_size or GROWTH_SIZES,
            )
        ]
    if options.part == "data":
        # needs optional packages
        from svit_hf.benchmark.loading import load_images, measure_data

        images = load_images(options.data, options.num_images)
        return [
            case
            for image_size in options.image_size or DEFAULT_SIZES
            for batch_size in options.batch_size
            for num_workers in options.num_workers
            for case in measure_data(
                images, session, num_workers=num_workers, batch_size=batch_size, image_size=image_size
            )
        ]
    cases = []
    for image_size in options.image_size or DEFAULT_SIZES:
        for batch_size in options.batch_size:
            shape = {"batch_size": batch_size, "image_size": image_size}
            if options.part == "super-tokens":
                cases += measure_super_tokens(network, situation, session, **shape)
            elif options.part == "operators":
                cases += measure_operators(network.config, situation, session, **shape)
            else:
                cases.append(measure_classifiers(network, peers, situation, session, **shape))
    return cases


def _find_additions(options: "BenchmarkCommand", device: torch.device, left_out: list[str]) -> frozenset[Addition]:
    """Return what was asked for beyond the usual forms; what needs torchao is noted where that is missing."""
    if (options.export or options.int8) and device.type != "cpu":
        raise SViTError(f"`device` is {str(device)!r}; with `export` and `int8` it has to be cpu.")
    additions: set[Addition] = set(options.export)
    if options.int8:
        additions |= {"int8"}
        additions |= {"onnx int8"} if "onnx" in options.export else set()
        additions |= {"pt2 int8"} if "pt2" in options.export else set()
    if options.int8 and missing_packages("quantization"):
        additions -= {"int8", "pt2 int8"}
        left_out.append("int8 in PyTorch: torchao is not installed")
    return frozenset(additions)


def _find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise SViTError(f"`device` is {name!r}, which cannot be used: {error}") from error
    return device
