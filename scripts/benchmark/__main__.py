# SPDX-License-Identifier: Apache-2.0
"""Measure SViT beside the official operators and its peers: what docs/results.md reports about speed.

Run it from the root of a checkout: python -m scripts.benchmark PART [OPTIONS]

Contestants take turns, round after round. They have the same images and, where the network is the same, the same
weights. Results are checked first: if one is wrong, no time is shown, and the exit status is not 0.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from scripts.benchmark.best_forms import BEST_FORMS, BEST_PEER_FORMS
from scripts.benchmark.contestants import (
    GROWTH_FORMS,
    INFERENCE_FORMS,
    PEER_FORMS,
    TRAINING_FORMS,
    Session,
    measure_classifiers,
    measure_peaks,
)
from scripts.benchmark.networks import PEERS, Network, peer_network, svit_network
from scripts.benchmark.operators import measure_operators, measure_super_tokens
from scripts.benchmark.results import Case, Results

from svit_hf.benchmark.comparison import find_device
from svit_hf.benchmark.measuring import (
    DTYPES,
    comparable_arithmetic,
    is_emulated,
    stopwatch_for,
)
from svit_hf.errors import SViTError
from svit_hf.memory_allocator import keep_freed_memory
from svit_hf.progress import say
from svit_hf.provenance import provenance


GROWTH_SIZES = (224, 384, 512, 768, 1024)
# larger cells in stages 3 and 4, where the published layouts attend among all tokens
LARGER_CELLS = ([8, 4, 2, 1], [16, 8, 2, 1])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; the help says what each is."""
    parser = argparse.ArgumentParser("python -m scripts.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "part",
        choices=("model", "super-tokens", "operators", "growth"),
        help="whole models; sampling and upsampling alone; single operators; cost by image size",
    )
    parser.add_argument("--task", choices=("inference", "training"), default="inference")
    parser.add_argument("--model", default="small", help="small, base, large, or a folder")
    parser.add_argument("--image-size", type=int, nargs="+")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8], help="for growth, at the smallest size")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="of Transformers or timm; or none")
    parser.add_argument("--compile", action="store_true", help="add forms that torch.compile makes")
    parser.add_argument("--programs", action="store_true", help="add exported programs and 8 bits, on a CPU")
    parser.add_argument("--best", action="store_true", help="instead, the fastest forms of all networks, on a CPU")
    parser.add_argument("--forms", nargs="+", help="of a part `model` that would measure others too, these alone")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing more is compiled")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, help=".json file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Results:
    """Measure a part."""
    device = find_device(options.device)
    stopwatch = stopwatch_for(device)
    allocator = keep_freed_memory()
    # names are checked before minutes are spent
    network, peers = svit_network(options.model), [peer_network(name) for name in options.peers]
    emulated = [dtype for dtype in options.dtype if is_emulated(dtype, device, stopwatch)]
    dtypes = [dtype for dtype in options.dtype if dtype not in emulated] or ["fp32"]
    say("measuring the peaks of this machine")
    session = Session(
        device,
        stopwatch,
        options.rounds,
        dtypes,
        measure_peaks(dtypes, device, stopwatch),
        options.task,
        options.compile or options.best,
        options.programs or options.best,
        say,
        [f"{dtype}: emulated here" for dtype in emulated],
        deadline=time.monotonic() + options.seconds,
    )
    sizes = options.image_size or (GROWTH_SIZES if options.part == "growth" else (224,))
    cases: list[Case] = []
    for batch_size in options.batch_size:
        if options.part == "growth":
            cases += measure_growth(network, options.model, peers, session, batch_size, sorted(sizes))
            continue
        for image_size in sizes:
            shape = {"batch_size": batch_size, "image_size": image_size}
            if options.part == "super-tokens":
                cases += measure_super_tokens(network, session, **shape)
            elif options.part == "operators":
                cases += measure_operators(network, session, **shape)
            else:
                own, of_peers = INFERENCE_FORMS if options.task == "inference" else TRAINING_FORMS, PEER_FORMS
                if options.best:
                    own, of_peers = BEST_FORMS, BEST_PEER_FORMS
                entries = [(network, own), *((peer, of_peers) for peer in peers)]
                if options.forms:
                    entries = [
                        (each, [form for form in forms if form.name in options.forms]) for each, forms in entries
                    ]
                cases.append(measure_classifiers(entries, session, part="model", **shape))
    described = provenance(device) | {"threads": torch.get_num_threads(), "memory allocator": allocator}
    described |= {"command": shlex.join(["python", "-m", "scripts.benchmark", *sys.argv[1:]])}
    described |= {"peaks": asdict(session.peaks), "left_out": session.left_out}
    return Results([described], cases)


def measure_growth(
    network: Network, model: str, peers: list[Network], session: Session, batch_size: int, sizes: Sequence[int]
) -> list[Case]:
    """Measure SViT, SViT with larger cells, and its peers at growing image sizes.

    The batch shrinks as images grow, so that a step has about the same number of pixels: what is left is how the cost
    of a pixel depends on the size of its image.
    """
    entries = [(network, GROWTH_FORMS)]
    cells = [sizes for sizes in LARGER_CELLS if len(sizes) == network.config.num_stages]
    entries += [(svit_network(model, sizes), GROWTH_FORMS[-1:]) for sizes in cells]
    entries += [(peer, PEER_FORMS[:1]) for peer in peers]
    cases = []
    for size in sizes:
        batch = max(round(batch_size * (sizes[0] / size) ** 2), 1)
        cases.append(measure_classifiers(entries, session, part="growth", batch_size=batch, image_size=size))
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the file, and return the exit status."""
    options = parse(arguments)
    try:
        with comparable_arithmetic():
            results = run(options)
        print(results.text())
        if options.output is not None:
            results.write(options.output)
    except SViTError as error:
        say(f"benchmark: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
