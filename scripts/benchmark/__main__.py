# SPDX-License-Identifier: Apache-2.0
"""Measure SViT beside the official operators and its peers: what docs/results.md reports about speed.

Run it from the root of a checkout: python -m scripts.benchmark PART [OPTIONS]

Contestants take turns, round after round. They have the same images and, where the network is the same, the same
weights. Results are checked first: if one is wrong, no time is shown, and the exit status is not 0.
"""

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
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
from scripts.benchmark.results import Case, Results, Row, draw_chart

from svit_hf.benchmark.comparison import find_device
from svit_hf.benchmark.measuring import (
    DTYPES,
    comparable_arithmetic,
    is_emulated,
    speed_ratio,
    spread_of,
    stopwatch_for,
)
from svit_hf.errors import SViTError
from svit_hf.memory_allocator import keep_freed_memory
from svit_hf.progress import say
from svit_hf.provenance import provenance


GROWTH_SIZES = (224, 384, 512, 768, 1024)
# larger cells in stages 3 and 4, where the published layouts attend among all tokens
LARGER_CELLS = ([8, 4, 2, 1], [16, 8, 2, 1])
# everything that docs/results.md reports about speed on a CPU, and what to run on a GPU
ALL_ON_CPU = {
    "inference": "model --batch-size 8 1 --rounds 7 --programs",
    "compiled": "model --rounds 7 --compile --peers",
    "best": "model --best --batch-size 8 1 --rounds 5 --peers swin-t convnext-t",
    "base": "model --model base --rounds 5 --peers",
    "large": "model --model large --rounds 3 --peers",
    "training": "model --task training --rounds 5 --peers swin-t convnext-t",
    "super-tokens": "super-tokens --rounds 7",
    "super-tokens-training": "super-tokens --rounds 7 --task training",
    "operators": "operators --rounds 7",
    "growth": "growth --rounds 3 --dtype fp32",
    "data": "data --batch-size 32 --num-workers 0 2",
}
ALL_ON_GPU = {
    **{f"inference-{name}": f"model --model {name} --dtype bf16 --compile" for name in ("small", "base", "large")},
    **{
        f"training-{name}": f"model --model {name} --dtype bf16 --task training" for name in ("small", "base", "large")
    },
    "super-tokens": "super-tokens --compile",
    "super-tokens-training": "super-tokens --dtype bf16 --task training",
    "operators": "operators --dtype bf16",
    "growth": "growth --dtype bf16",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; the help says what each is."""
    parser = argparse.ArgumentParser("python -m scripts.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "part",
        choices=("model", "super-tokens", "operators", "growth", "data", "render", "all"),
        help="whole models; sampling and upsampling alone; single operators; cost by image size; decoding and "
        "augmentation; tables and chart of earlier results; everything, a process each, into the folder --output",
    )
    parser.add_argument("results", nargs="*", type=Path, help="with render: .json files")
    parser.add_argument("--task", choices=("inference", "training"), default="inference")
    parser.add_argument("--model", default="small", help="small, base, large, or a folder")
    parser.add_argument("--image-size", type=int, nargs="+")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8], help="for growth, at the smallest size")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="of Transformers or timm; or none")
    parser.add_argument("--compile", action="store_true", help="add forms that torch.compile makes")
    parser.add_argument("--programs", action="store_true", help="add exported programs and 8 bits, on a CPU")
    parser.add_argument("--best", action="store_true", help="instead, the fastest forms of all networks, on a CPU")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing more is compiled")
    parser.add_argument("--data", default="", help="for data: images as for training; else two photographs")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, help=".json file; the folder for all")
    parser.add_argument("--chart", type=Path, help=".png file, which needs matplotlib")
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
            elif options.part == "data":
                cases += measure_data(options, session, **shape)
            else:
                own, of_peers = INFERENCE_FORMS if options.task == "inference" else TRAINING_FORMS, PEER_FORMS
                if options.best:
                    own, of_peers = BEST_FORMS, BEST_PEER_FORMS
                entries = [(network, own), *((peer, of_peers) for peer in peers)]
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


def measure_data(options: argparse.Namespace, session: Session, *, batch_size: int, image_size: int) -> list[Case]:
    """Measure decoding with the official augmentation, and with what of it needs no torchvision; times of a worker."""
    from scripts.benchmark.loading import AUGMENTATIONS, measure_loading, photographs, pick_images

    from svit_hf.data.opening import open_source
    from svit_hf.data.options import DataOptions

    images = photographs(options.num_images)
    if options.data:
        images = pick_images(open_source(DataOptions(options.data), "train"), options.num_images)
    cases = []
    for num_workers in options.num_workers:
        for name, augmentation in AUGMENTATIONS.items():
            title = f"image of a worker, {name}: num_workers {num_workers}, batch {batch_size}, {image_size} pixels"
            if augmentation.randaugment and find_spec("torchvision") is None:
                session.left_out.append(f"{name}: torchvision is not installed")
                continue
            session.say(title)
            measured = measure_loading(
                images,
                augmentation,
                image_size=image_size,
                batch_size=batch_size,
                num_workers=num_workers,
                repeats=session.rounds,
            )
            first = next(iter(measured.values()))
            rows = []
            for what, seconds in measured.items():
                spread = spread_of(seconds)
                ratio = list(speed_ratio(first, seconds))
                rows.append(Row(what, "fp32", list(seconds), list(spread), ratio, 1 / spread.median))
            cases.append(Case("data", title, "training", batch_size, image_size, rows))
    return cases


def run_all(options: argparse.Namespace) -> Results:
    """Measure everything on a device, each part in a process of its own; nothing else should run meanwhile."""
    if options.output is None:
        raise SViTError("`output` is not given; `all` needs a folder to write to.")
    device = find_device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    files = []
    for name, arguments in (ALL_ON_GPU if device.type == "cuda" else ALL_ON_CPU).items():
        files.append(options.output / f"{device.type}-{name}.json")
        command = [*arguments.split(), "--device", str(device), "--output", str(files[-1])]
        if device.type == "cuda":
            command += ["--batch-size", "64"]
        if "--dtype" not in command:
            command += ["--dtype", *options.dtype]
        subprocess.run([sys.executable, "-m", "scripts.benchmark", *command], check=True, stdout=subprocess.DEVNULL)
    options.output = None
    return Results.read(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or read, print the tables, write the files, and return the exit status."""
    options = parse(arguments)
    try:
        if options.part == "render":
            results = Results.read(options.results)
        else:
            with comparable_arithmetic():
                results = run_all(options) if options.part == "all" else run(options)
        print(results.text())
        if options.output is not None:
            results.write(options.output)
        if options.chart is not None:
            draw_chart(results, options.chart)
    except SViTError as error:
        say(f"benchmark: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
