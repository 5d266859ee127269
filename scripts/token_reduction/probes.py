# SPDX-License-Identifier: Apache-2.0
"""Linear classifiers of pictures, or of patches by masks, on features that are extracted once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scripts.token_reduction.contestants import Features
from torch.nn import functional as F

from svit_hf.files import whole_file
from svit_hf.samplers.comparison import to_pixels
from svit_hf.tasks.pictures import decode_mask, decode_picture
from svit_hf.tasks.rows import parquet_rows


TRAINING_SHARE = 0.7
# of the weights of a classifier, whose features have mean 0 and variance 1
DECAY = 1e-2


class Example(NamedTuple):
    """Pixels `(1, 3, H, W)`, and the class of the picture or whether each pixel is part of an object, `(H, W)`."""

    pixels: torch.Tensor
    label: torch.Tensor


def read_examples(data: Path, size: int, limit: int) -> Iterator[Example]:
    """Yield pictures that are spread over both splits, whose rows may be ordered by class."""
    for split in ("train", "test"):
        rows = parquet_rows(data, split)
        if rows is None:
            raise SystemExit(f"--data: {str(data)!r} has no {split}.parquet")
        for number in sorted({*np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int).tolist()}):
            row, origin = rows.load(number), rows.origins[number]
            pixels = to_pixels(decode_picture(row.get("image"), origin).resize((size, size)))
            if row.get("mask") is None:
                yield Example(pixels, torch.tensor(row["label"]))
            else:
                objects = Image.fromarray((decode_mask(row["mask"], origin) > 0).astype(np.uint8))
                yield Example(pixels, torch.from_numpy(np.array(objects.resize((size, size), Image.Resampling.BOX))))


@torch.inference_mode()
def extract(features: Features, examples: Iterator[Example], patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a classifier sees of each picture, and its labels.

    Returns:
        For classes: class token beside the mean of patches, `(pictures, 2 * C)`, and `(pictures,)`. For masks: the
        patches, `(pictures, N, C)`, and whether more than half of each is object, `(pictures, N)`.
    """
    inputs, labels = [], []
    for pixels, label in examples:
        states = features(pixels)[0]
        if label.dim() == 0:
            inputs.append(torch.cat([states[0], states[1:].mean(0)]))
            labels.append(label)
        else:
            inputs.append(states[1:])
            labels.append((F.avg_pool2d(label[None].float(), patch_size)[0] > 0.5).long().flatten())
    return torch.stack(inputs), torch.stack(labels)


def score(inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    """Learn from some of the pictures, drawn by the seed, and return how well the others are told.

    Returns:
        The accuracy; for patches, intersection over union of those that are objects.
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    num_training = round(TRAINING_SHARE * len(order))
    parts = [
        (inputs[part].flatten(0, -2), labels[part].flatten())
        for part in order.split([num_training, len(order) - num_training])
    ]
    (training, wanted), (testing, expected) = parts
    spread, mean = torch.std_mean(training, dim=0)
    classifier = torch.nn.Linear(training.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    training = (training - mean) / (spread + 1e-6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(classifier(training), wanted) + DECAY / 2 * classifier.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found = classifier((testing - mean) / (spread + 1e-6)).argmax(dim=1)
    if labels.dim() == 1:
        return (found == expected).float().mean().item()
    return ((found & expected).sum() / (found | expected).sum()).item()


def probe(
    ways: Mapping[str, Features], data: Path, size: int, limit: int, num_seeds: int, patch_size: int, folder: Path
) -> dict[str, list[float]]:
    """Return the score of a linear classifier for each of some ways to get features, one for each seed.

    Args:
        ways: From pixels to tokens, by name.
        data: Folder of parquet files with `image` and `label` or `mask`.
        size: Of pictures, in pixels.
        limit: Pictures of each split that take part.
        num_seeds: How often pictures are drawn for training, the same for all ways.
        patch_size: Of the model, in pixels.
        folder: Where features are kept; those that are there are not extracted again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for name, features in ways.items():
        path = folder / f"{name}, {limit}.pt".replace(" ", "-")
        if not path.exists():
            with whole_file(path) as file:
                torch.save(extract(features, read_examples(data, size, limit), patch_size), file)
        inputs, labels = torch.load(path, weights_only=True)
        scores[name] = [score(inputs, labels, seed) for seed in range(num_seeds)]
    return scores
