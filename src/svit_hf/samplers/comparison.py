# SPDX-License-Identifier: Apache-2.0
"""Compare samplers on the same pictures, and inside the same trained vision transformer."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from svit_hf.errors import SViTError
from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS, make_learned_sampler
from svit_hf.other_models import apply_super_tokens
from svit_hf.samplers.measures import (
    achievable_accuracy,
    boundary_recall,
    pixel_tokens,
    reconstruction_error,
    regions_of,
)
from svit_hf.tasks.heads import IMAGENET_MEAN, IMAGENET_STD
from svit_hf.tasks.pictures import decode_mask, decode_picture
from svit_hf.tasks.task import Rows


# a control, which is always there
RANDOM = "random"
# tokens of the first stage of the published models at 224 pixels, and their cell
_TIMED_TOKENS, _TIMED_CELL = (1, 64, 56, 56), (8, 8)
_MEASURES = {
    "features": "error of features",
    "patches": "cosine of patches",
    "class": "cosine of class token",
    "pixels": "error of pixels",
    "boundaries": "boundary recall",
    "accuracy": "achievable accuracy",
    "milliseconds": "ms",
}


class Example(NamedTuple):
    """Picture of the comparison, and its objects where there are masks.

    Attributes:
        picture: RGB, `size` pixels wide and high.
        mask: Numbers of objects, `(size, size)`, int64.
    """

    picture: Image.Image
    mask: torch.Tensor | None


Measured = dict[str, dict[str, list[float]]]
"""The values of each measure of each sampler, one for each picture, in the order of the pictures."""


def read_examples(rows: Rows, limit: int, size: int) -> list[Example]:
    """Read the first pictures, and masks where there are some, whole and in `size` times `size` pixels."""
    examples = []
    for index in range(min(limit, len(rows))):
        row, origin = rows.load(index), rows.origins[index]
        mask = None
        if row.get("mask") is not None:
            stored = Image.fromarray(decode_mask(row["mask"], origin).astype(np.int32))
            mask = torch.from_numpy(np.array(stored.resize((size, size), Image.Resampling.NEAREST))).long()
        picture = decode_picture(row.get("image"), origin).resize((size, size), Image.Resampling.BICUBIC)
        examples.append(Example(picture, mask))
    return examples


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """Return a picture as a trained vision transformer takes it, `(1, 3, H, W)`, normalised as for ImageNet."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1).unsqueeze(0)


def compare_samplers(
    names: Sequence[str],
    examples: Sequence[Example],
    cell_size: int,
    num_iterations: int,
    model: Any = None,
    model_cell_size: int = 2,
    advance: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure samplers, and the random control, on pictures.

    Args:
        names: Names of samplers.
        examples: The pictures.
        cell_size: Edge of a cell, in pixels.
        num_iterations: Rounds of association and averaging.
        model: A trained vision transformer that `apply_super_tokens` takes, in eval mode, for pictures of their size.
        model_cell_size: Edge of a cell, in patches of the model.
        advance: Called after each picture.

    Raises:
        SViTError: If a name is unknown.
    """
    if unknown := sorted(set(names) - SUPER_TOKEN_SAMPLERS.keys()):
        raise SViTError(f"`samplers` has {unknown}; allowed are {sorted(SUPER_TOKEN_SAMPLERS)}.")
    measured: Measured = {name: {} for name in [*names, RANDOM]}
    milliseconds = _time_samplers(measured, num_iterations)
    for example in examples:
        for name in measured:
            values = _measure_pixels(_sampler(name, 27), example, cell_size, num_iterations)
            values["milliseconds"] = milliseconds[name]
            for measure, value in values.items():
                measured[name].setdefault(measure, []).append(value)
        if model is not None:
            for name, values in _measure_features(model, measured, example, model_cell_size, num_iterations).items():
                for measure, value in values.items():
                    measured[name].setdefault(measure, []).append(value)
        advance()
    return measured


def table_of(measured: Measured) -> list[tuple[str, ...]]:
    """Return the rows of a table, the best first: means, and standard deviations over pictures."""
    kinds = [kind for kind in _MEASURES if kind in next(iter(measured.values()))]
    ordered = sorted(measured, key=lambda name: fmean(measured[name][kinds[0]]), reverse=kinds[0] == "patches")
    return [("sampler", *(_MEASURES[kind] for kind in kinds))] + [
        (name, *(_cell(measured[name][kind]) for kind in kinds)) for name in ordered
    ]


def _cell(values: Sequence[float]) -> str:
    # pictures without objects have no boundaries
    values = [value for value in values if value == value]
    if not values:
        return "-"
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.3f} ({spread:.3f})" if spread else f"{fmean(values):.3f}"


def _sampler(name: str, channels: int) -> Any:
    return make_learned_sampler(name, channels, (2, 2)) or SUPER_TOKEN_SAMPLERS[name]


@torch.no_grad()
def _time_samplers(names: Mapping[str, object], num_iterations: int, rounds: int = 15) -> dict[str, float]:
    tokens = torch.randn(_TIMED_TOKENS, generator=torch.Generator().manual_seed(0))
    samplers = {name: _sampler(name, tokens.shape[1]) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    # by turns, so that a busy machine is busy for all
    for _ in range(rounds):
        for name, sample in samplers.items():
            start = time.perf_counter()
            sample(tokens, _TIMED_CELL, num_iterations)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: median(times) for name, times in taken.items()}


@torch.no_grad()
def _measure_pixels(sample: Any, example: Example, cell_size: int, num_iterations: int) -> dict[str, float]:
    tokens, cell = pixel_tokens(example.picture), (cell_size, cell_size)
    sampled = sample(tokens, cell, num_iterations)
    values = {"pixels": reconstruction_error(tokens, sampled, cell)}
    if example.mask is not None:
        regions = regions_of(sampled, cell, (tokens.shape[-2], tokens.shape[-1]))
        values["boundaries"] = boundary_recall(regions, example.mask)
        values["accuracy"] = achievable_accuracy(regions, example.mask)
    return values


@torch.no_grad()
def _measure_features(
    model: Any, names: Mapping[str, object], example: Example, cell_size: int, num_iterations: int
) -> dict[str, dict[str, float]]:
    """Compare a model in which every layer has super tokens with the model as it is."""
    inputs: dict[str, Any] = {"pixel_values": to_pixels(example.picture)}
    # what has positions for one size asks for this at others
    if "interpolate_pos_encoding" in signature(model.forward).parameters:
        inputs["interpolate_pos_encoding"] = True
    kept: list[torch.Tensor] = []
    with _observed(model, cell_size, kept) as grid_of:
        expected = model(**inputs).last_hidden_state
    height, width = grid_of()
    num_others = expected.shape[1] - height * width
    cell = (cell_size, cell_size)
    measured = {}
    for name in names:
        sample = _sampler(name, expected.shape[-1])
        with apply_super_tokens(model, cell_size, mode="both", sampler=sample, num_iterations=num_iterations):
            states = model(**inputs).last_hidden_state
        cosines = F.cosine_similarity(states, expected, dim=-1)[0]
        errors = []
        for attended in kept:
            grid = attended[:, num_others:].transpose(1, 2).unflatten(2, (height, width))
            errors.append(reconstruction_error(grid, sample(grid, cell, num_iterations), cell))
        measured[name] = {"features": fmean(errors), "patches": cosines[num_others:].mean().item()}
        if num_others:
            measured[name]["class"] = cosines[0].item()
    return measured


@contextmanager
def _observed(model: Any, cell_size: int, kept: list[torch.Tensor]) -> Iterator[Callable[[], tuple[int, int]]]:
    """Keep what the attention of each layer gets in one forward pass; gives a function that tells the grid."""
    with apply_super_tokens(model, cell_size) as applied:
        attentions = list(applied.attentions)
    hooks = [
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for attention in attentions
    ]
    handle = apply_super_tokens(model, cell_size, layers=())
    try:
        yield lambda: handle.grid_size
    finally:
        handle.remove()
        for hook in hooks:
            hook.remove()
