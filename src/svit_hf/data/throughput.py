# SPDX-License-Identifier: Apache-2.0
"""How many images a second one worker decodes and augments, next to what torchvision's own pipeline does."""

import io
import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader

from svit_hf.data.augmentation import RESAMPLING, TrainingTransform, require_torchvision
from svit_hf.data.decoding import decode_image
from svit_hf.data.loading import TrainingLoader
from svit_hf.data.options import AugmentationOptions
from svit_hf.data.sources import ImageSource
from svit_hf.errors import SViTError


class LoadingRate(NamedTuple):
    """Hold a measurement.

    Attributes:
        what: What was measured.
        images_per_second: Of one process; median over the repeats.
        ratio: The same as a multiple of what torchvision's pipeline does.
    """

    what: str
    images_per_second: float
    ratio: float


def measure_loading(
    source: ImageSource, transform: TrainingTransform, *, num_images: int = 256, batch_size: int = 32, repeats: int = 5
) -> list[LoadingRate]:
    """Measure what one process does, without workers; what is compared takes turns.

    Torchvision's pipeline decodes with Pillow, and crops, flips and normalises with `transforms.v2`, out of the bytes
    of the same images in memory, under the global generator. RandAugment, colour jitter and erasing are ours in both:
    torchvision's differ from those of the official training.

    Args:
        source: The images.
        transform: The augmentation.
        num_images: Images to read, the first ones of the source in the order of an epoch.
        batch_size: Images in a batch.
        repeats: Measurements of each; the median counts.

    Returns:
        Decoding alone; decoding and augmentation, through `TrainingLoader` from where the source lies; torchvision's
        pipeline.

    Raises:
        SViTError: If torchvision is missing, or the source has too few images.
    """
    require_torchvision("part", "data", "another part")
    num_batches = min(num_images, source.num_samples) // batch_size
    if num_batches == 0 or repeats < 1:
        raise SViTError(
            f"`num_images` is {num_images} of {source.num_samples}, `batch_size` {batch_size}, `repeats` {repeats}; "
            "there has to be at least one batch and one repeat."
        )
    encoded = [row.image for shard, size in enumerate(source.shard_sizes) for row in source.rows(shard, 0, size)][
        : num_batches * batch_size
    ]
    loader = TrainingLoader(source, transform, batch_size=batch_size)
    plain = DataLoader(_InMemory(encoded, _torchvision_transform(transform)), batch_size, shuffle=True)
    measured: dict[str, Callable[[], object]] = {
        "decode": lambda: [decode_image(image) for image in encoded],
        "decode and augment": lambda: [None for _ in islice(loader.epoch(0), num_batches)],
        "torchvision's pipeline": lambda: [None for _ in plain],
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(repeats):
        for name, work in measured.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(encoded) / statistics.median(times) for name, times in seconds.items()}
    return [LoadingRate(name, rate, rate / rates["torchvision's pipeline"]) for name, rate in rates.items()]


class _InMemory(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, encoded: list[Any], transform: Callable[[Image.Image], torch.Tensor]):
        self.encoded = encoded
        self.transform = transform

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        stored = self.encoded[index]
        with Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored) as image:
            return self.transform(image.convert("RGB"))


def _torchvision_transform(ours: TrainingTransform) -> Callable[[Image.Image], torch.Tensor]:
    from torchvision.transforms import v2

    options: AugmentationOptions = ours.options
    transform: Callable[[Image.Image], torch.Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(ours.size, options.scale, options.ratio, RESAMPLING[options.interpolation]),
            v2.RandomHorizontalFlip(options.horizontal_flip),
            ours.recolor,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ours.mean.flatten().tolist(), ours.std.flatten().tolist(), inplace=True),
            ours.erase,
        ]
    )
    return transform
