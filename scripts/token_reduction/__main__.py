# SPDX-License-Identifier: Apache-2.0
"""Compare ways to spend less on a trained DINOv2 at equal measured time: super tokens, ToMe, dropping, pooling.

    python -m scripts.token_reduction features --model DINOV2 --data trashnet6 --sizes 224 504 --output-dir RESULTS
    python -m scripts.token_reduction probe --model DINOV2 --data trashnet6 signdigits10 --output-dir RESULTS
    python -m scripts.token_reduction speed --model DINOV2 --data trashnet6 --sizes 224 504 --output-dir RESULTS

`features` compares features of whole pictures with those of the model as it is, by cosine, and processor time with
that of the model on the same picture before. A second table has what each way gives at the same time, between the
settings that were measured, and a third one how often that is better than by ToMe. `probe` learns to classify
pictures, or patches where there are masks, by the features of one setting of each, the one whose time in `features` is
nearest to `--time`. `speed` has the time of the model as it is and of a few settings as they are, compiled into one
graph, and in ONNX Runtime, for pictures of one size. All go on after a stop. Run it from the root of a checkout; it
uses one thread.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from scripts.token_reduction.contestants import Features, contestants_of
from scripts.token_reduction.probes import probe
from scripts.token_reduction.speed import FORMS, SETTINGS, Network, networks_of

import svit_hf  # noqa: F401 - before transformers, which a torchvision of another torch would stop
from svit_hf.benchmark.report import align
from svit_hf.samplers.comparison import to_pixels
from svit_hf.tasks.pictures import decode_picture
from svit_hf.tasks.rows import parquet_rows


UNCHANGED = "the model as it is"
# what all have to be better than
RIVAL = "ToMe"
TIMES = (0.8, 0.7, 0.6, 0.5, 0.4)
# of what tells one measurement from another
NAMES = ("data", "size", "picture", "contestant", "setting")


class Results:
    """Rows of a file, one JSON object in a line, that are measured once.

    Args:
        path: The file.
        names: Of the fields that tell rows apart.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self.names = names
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # the last line of a stopped run may not be whole
        self.rows = [json.loads(line) for line in lines if line.endswith("\n")]
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return any(tuple(row[name] for name in self.names) == key for row in self.rows)

    def add(self, key: tuple[Any, ...], **values: Any) -> None:
        """Append a row."""
        row = dict(zip(self.names, key, strict=True)) | values
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_pixels(data: Path, split: str, numbers: Iterable[int], size: int) -> Iterable[torch.Tensor]:
    """Yield pictures of a split as a trained vision transformer takes them, in `size` times `size` pixels."""
    rows = parquet_rows(data, split)
    assert rows is not None
    for number in numbers:
        picture = decode_picture(rows.load(number).get("image"), rows.origins[number])
        yield to_pixels(picture.resize((size, size)))


def spread_numbers(data: Path, split: str, limit: int) -> list[int]:
    """Return the numbers of pictures that are spread over a split, whose rows may be ordered by class."""
    rows = parquet_rows(data, split)
    if rows is None:
        raise SystemExit(f"--data: {str(data)!r} has no {split}.parquet")
    return sorted({int(number) for number in np.linspace(0, len(rows) - 1, min(limit, len(rows)))})


def measure_features(
    model: Any, data: Path, size: int, limit: int, names: Sequence[str], results: Results, chosen: Sequence[str] = ()
) -> None:
    """Measure what is missing of the chosen settings, or all, in turns: on one picture, then on the next."""
    settings = [
        (name, setting, features)
        for name, ways in contestants_of(model).items()
        for setting, features in ways.items()
        if name in names and (not chosen or setting in chosen)
    ]
    numbers = spread_numbers(data, "test", limit)
    for number in numbers:
        missing = [each for each in settings if (data.name, size, number, *each[:2]) not in results]
        if not missing:
            continue
        (pixels,) = read_pixels(data, "test", [number], size)
        own, own_seconds = _timed(lambda images: model(images).last_hidden_state, pixels)
        for name, setting, features in missing:
            states, seconds = _timed(features, pixels)
            cosines = torch.cosine_similarity(states, own, dim=-1)[0]
            key = (data.name, size, number, name, setting)
            class_token, patches = cosines[0].item(), cosines[1:].mean().item()
            results.add(key, time=seconds / own_seconds, seconds=seconds, class_token=class_token, patches=patches)


@torch.inference_mode()
def _timed(features: Features, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    states = features(pixels)
    return states, time.process_time() - start


def points_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return median time, and mean cosines of class token and patches, of each setting of each contestant."""
    points: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, setting in dict.fromkeys((row["contestant"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["contestant"], row["setting"]) == (name, setting)]
        points.setdefault(name, {})[setting] = (
            median(row["time"] for row in own),
            fmean(row["class_token"] for row in own),
            fmean(row["patches"] for row in own),
        )
    return points


def loss_at(time_wanted: float, points: Iterable[tuple[float, float]]) -> float | None:
    """Return the loss at a time, between the two settings around it, on a logarithmic scale.

    Args:
        time_wanted: Relative to the model as it is.
        points: Time and cosine of settings.
    """
    ordered = sorted((seconds, math.log(max(1 - cosine, 1e-9))) for seconds, cosine in points)
    times, losses = zip(*ordered, strict=True)
    if not times[0] <= time_wanted <= times[-1]:
        return None
    return math.exp(float(np.interp(time_wanted, times, losses)))


def losses_of_pictures(rows: Sequence[dict[str, Any]], time_wanted: float) -> dict[str, dict[int, float]]:
    """Return what each contestant loses of patches at a time: of each picture that all its settings were tried on.

    Contestants without settings on both sides of that time are left out.
    """
    losses: dict[str, dict[int, float]] = {}
    for name, settings in points_of(rows).items():
        cosines: dict[int, dict[str, float]] = {}
        for row in rows:
            if row["contestant"] == name:
                cosines.setdefault(row["picture"], {})[row["setting"]] = row["patches"]
        for picture, of_settings in cosines.items():
            points = [(settings[setting][0], cosine) for setting, cosine in of_settings.items()]
            if len(points) == len(settings) and (loss := loss_at(time_wanted, points)) is not None:
                losses.setdefault(name, {})[picture] = loss
    return losses


def print_features(rows: Sequence[dict[str, Any]]) -> None:
    """Print both tables for each data set and size."""
    for data, size in dict.fromkeys((row["data"], row["size"]) for row in rows):
        own = [row for row in rows if (row["data"], row["size"]) == (data, size)]
        num_pictures = len({row["picture"] for row in own})
        print(f"\n{data}, {size} pixels, {num_pictures} pictures: 1000 times what is lost of the cosine")
        lines = [("contestant", "setting", "time", "class token", "patches", "spread")]
        for name, settings in points_of(own).items():
            for setting, (seconds, class_token, patches) in settings.items():
                values = [row["patches"] for row in own if (row["contestant"], row["setting"]) == (name, setting)]
                spread = f"{1000 * stdev(values):.2f}" if len(values) > 1 else "?"
                losses = (f"{1000 * (1 - value):.2f}" for value in (class_token, patches))
                lines.append((name, setting, f"{seconds:.3f}", *losses, spread))
        print(align(lines))
        print("\nat equal time: patches, class token")
        lines = [("contestant", *(f"{wanted:g}" for wanted in TIMES))]
        for name, settings in points_of(own).items():
            cells = []
            for wanted in TIMES:
                losses_there = [
                    loss_at(wanted, [(point[0], point[kind]) for point in settings.values()]) for kind in (2, 1)
                ]
                cells.append(", ".join("-" if loss is None else f"{1000 * loss:.2f}" for loss in losses_there))
            lines.append((name, *cells))
        print(align(lines))
        print(f"\nof single pictures, at equal time: median of patches, and how often it is less than by {RIVAL}")
        lines = [("contestant", *(f"{wanted:g}" for wanted in TIMES))]
        of_pictures = [losses_of_pictures(own, wanted) for wanted in TIMES]
        lines += [(name, *(_single(name, losses) for losses in of_pictures)) for name in points_of(own)]
        print(align(lines), flush=True)


def _single(name: str, losses: Mapping[str, Mapping[int, float]]) -> str:
    if name not in losses:
        return "-"
    both = losses[name].keys() & losses.get(RIVAL, {}).keys()
    less = sum(losses[name][picture] < losses[RIVAL][picture] for picture in both)
    wins = f", {less} of {len(both)}" if both and name != RIVAL else ""
    return f"{1000 * median(losses[name].values()):.2f}{wins}"


def measure_speed(model: Any, data: Path, size: int, limit: int, names: Sequence[str], results: Results) -> None:
    """Measure what is missing, one form after the other: all networks on one picture in turns, then on the next."""
    networks = {(UNCHANGED, ""): Network(model, lambda pixels: model(pixels).last_hidden_state)}
    networks |= {(name, setting): network for name, setting, network in networks_of(model, names)}
    numbers = spread_numbers(data, "test", limit)
    # PyTorch compiles the same code a few times only
    torch.compiler.reset()
    for form, prepare in FORMS.items():
        missing = [
            number
            for number in numbers
            if any((form, data.name, size, number, *each) not in results for each in networks)
        ]
        if not missing:
            continue
        (first,) = read_pixels(data, "test", missing[:1], size)
        with torch.inference_mode():
            runs = {each: prepare(network, first) for each, network in networks.items()}
            for run in runs.values():
                run(first)
        for number, pixels in zip(missing, read_pixels(data, "test", missing, size), strict=True):
            measured = {each: _timed(run, pixels) for each, run in runs.items()}
            own_seconds = measured[UNCHANGED, ""][1]
            for each, (states, seconds) in measured.items():
                expected, _ = _timed(networks[each], pixels)
                difference = 1 - torch.cosine_similarity(states, expected, dim=-1).mean().item()
                key = (form, data.name, size, number, *each)
                if key not in results:
                    results.add(key, time=seconds / own_seconds, seconds=seconds, difference=difference)


def print_speed(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each data set and size."""
    for data, size in dict.fromkeys((row["data"], row["size"]) for row in rows):
        own = [row for row in rows if (row["data"], row["size"]) == (data, size)]
        num_pictures = len({row["picture"] for row in own})
        print(f"\n{data}, {size} pixels, {num_pictures} pictures: medians, time relative to the model in a form")
        lines = [("contestant", "setting", "form", "time", "seconds", "1 - cosine to eager")]
        for name, setting, form in dict.fromkeys((row["contestant"], row["setting"], row["form"]) for row in own):
            these = [row for row in own if (row["contestant"], row["setting"], row["form"]) == (name, setting, form)]
            seconds, relative = (median(row[kind] for row in these) for kind in ("seconds", "time"))
            difference = max(row["difference"] for row in these)
            lines.append((name, setting, form, f"{relative:.3f}", f"{seconds:.3f}", f"{difference:.1e}"))
        print(align(lines), flush=True)


def setting_nearest(rows: Sequence[dict[str, Any]], size: int, wanted: float) -> dict[str, str]:
    """Return the setting of each contestant whose time is nearest to the one wanted, on any data."""
    points = points_of([row for row in rows if row["size"] == size])
    return {
        name: min(settings, key=lambda setting: abs(settings[setting][0] - wanted))
        for name, settings in points.items()
    }


def print_scores(scores: Mapping[str, list[float]]) -> None:
    """Print a table of scores, the same splits for each, beside those of the model as it is."""
    lines = [("contestant", "score", "spread", "difference", "worse in")]
    for name, values in scores.items():
        differences = [value - other for value, other in zip(values, scores[UNCHANGED], strict=True)]
        spread = f"{stdev(values):.1%}" if len(values) > 1 else "?"
        worse = f"{sum(each < 0 for each in differences)} of {len(differences)}"
        lines.append((name, f"{fmean(values):.1%}", spread, f"{100 * fmean(differences):+.1f}", worse))
    print(align(lines), flush=True)


def _require_known(
    parser: argparse.ArgumentParser, argument: str, given: Iterable[str], allowed: Iterable[str]
) -> None:
    allowed = dict.fromkeys(allowed)
    if unknown := sorted(set(given) - allowed.keys()):
        parser.error(f"`--{argument}` has {unknown}; allowed are {[*allowed]}")


def main(words: list[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=("features", "probe", "speed"))
    parser.add_argument("--model", type=Path, required=True, help="folder of a Dinov2Model of 12 layers")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of parquet files with pictures")
    parser.add_argument("--output-dir", type=Path, required=True, help="where rows are kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224], help="of pictures, in pixels")
    parser.add_argument("--limit", type=int, default=8, help="pictures of the test split; for `probe` of each split")
    parser.add_argument("--contestants", nargs="*", default=[], help="all by default; for `speed` there are a few")
    parser.add_argument("--settings", nargs="*", default=[], help="for `features`, of the contestants; all by default")
    parser.add_argument("--time", type=float, default=0.6, help="for `probe`, relative to the model as it is")
    parser.add_argument("--seeds", type=int, default=5, help="for `probe`")
    options = parser.parse_args(words)
    if min(options.limit, options.seeds) < 1 or min(options.sizes) < 28:
        parser.error("`--limit` and `--seeds` are at least 1, `--sizes` at least 28")
    torch.set_num_threads(1)
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(options.model).eval()
    allowed = SETTINGS if options.what == "speed" else contestants_of(model)
    _require_known(parser, "contestants", options.contestants, allowed)
    _require_known(parser, "settings", options.settings, chain(*contestants_of(model).values()))
    measure: Callable[..., None]
    if options.what == "speed":
        measure, show, file, names = measure_speed, print_speed, "speed.jsonl", ("form", *NAMES)
    else:
        measure = partial(measure_features, chosen=options.settings)
        show, file, names = print_features, "features.jsonl", NAMES
    results = Results(options.output_dir / file, names)
    if options.what != "probe":
        for data in options.data:
            for size in options.sizes:
                measure(model, data, size, options.limit, options.contestants or [*allowed], results)
        show(results.rows)
        return
    for size in options.sizes:
        rows = [row for row in results.rows if not options.contestants or row["contestant"] in options.contestants]
        chosen = setting_nearest(rows, size, options.time)
        if not chosen:
            parser.error(f"{results.path} has nothing of {size} pixels; `features` comes first")
        ways: dict[str, Features] = {
            UNCHANGED: lambda pixels: model(pixels).last_hidden_state,
            **{f"{name}: {setting}": contestants_of(model)[name][setting] for name, setting in chosen.items()},
        }
        for data in options.data:
            folder = options.output_dir / "probe" / f"{data.name}-{size}"
            scores = probe(ways, data, size, options.limit, options.seeds, model.config.patch_size, folder)
            print(f"\n{data.name}, {size} pixels, {options.seeds} splits")
            print_scores(scores)


if __name__ == "__main__":
    main()
