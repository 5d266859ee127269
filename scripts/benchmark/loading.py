# SPDX-License-Identifier: Apache-2.0
"""How long one worker takes to decode and augment an image, next to torchvision's own pipeline."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain, cycle, islice
from pathlib import Path

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from svit_hf.data.augmentation import RESAMPLING, TrainingTransform
from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.loading import TrainingLoader
from svit_hf.data.options import AugmentationOptions
from svit_hf.data.sharding import SampleKey
from svit_hf.data.sources import ImageSource, IndexedSource, Row, TableSource
from svit_hf.errors import SViTError


# what is measured: the official augmentation, and what of it needs no torchvision
AUGMENTATIONS = {
    "crop, flip, RandAugment, erasing": AugmentationOptions(),
    "crop and flip": AugmentationOptions(randaugment="", color_jitter=0, random_erasing=0),
}
PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def photographs(num_images: int) -> list[bytes]:
    """Return two photographs of 640x427 pixels as JPEG, over and over; scikit-learn's wheel has them."""
    folder = files("sklearn.datasets.images")
    return list(islice(cycle([(folder / name).read_bytes() for name in PHOTOGRAPHS]), num_images))


def pick_images(source: ImageSource, num_images: int) -> list[bytes]:
    """Return encoded images, all of which can be decoded: any ones of an index, the first ones of a stream.

    No more than these is read, except for broken ones. A source that has fewer gives all that it has.
    """
    rows: Iterator[Row]
    if isinstance(source, IndexedSource):
        order = torch.randperm(source.num_samples, generator=torch.Generator().manual_seed(0))
        rows = (source.row(int(sample_id)) for sample_id in order)
    else:
        rows = chain.from_iterable(source.rows(shard, 0, size) for shard, size in enumerate(source.shard_sizes))
    return list(islice(_encoded(rows), num_images))


def measure_loading(
    images: Sequence[bytes],
    augmentation: AugmentationOptions,
    *,
    image_size: int,
    batch_size: int,
    num_workers: int,
    repeats: int,
) -> dict[str, tuple[float, ...]]:
    """Measure pipelines from the same encoded images in memory to batches; they take turns.

    Torchvision's decodes with Pillow, and augments with `transforms.v2` under the global generator. Its RandAugment
    applies both operations that it draws; ours, the official one, each of them half of the time. Where torchvision is
    missing, so is its pipeline.

    Args:
        images: Encoded images.
        augmentation: What to do with them.
        image_size: Edge of the results, in pixels.
        batch_size: Images in a batch.
        num_workers: Processes; 0 for this one.
        repeats: Rounds.

    Returns:
        Seconds that one worker takes per image, one entry per round, by pipeline. The first batch of each worker does
        not count, nor do its start and end.

    Raises:
        SViTError: If there are too few images, or `augmentation` needs torchvision and it is missing.
    """
    needed = 2 * max(1, num_workers) * batch_size
    if len(images) < needed:
        raise SViTError(
            f"`num_images` gives {len(images)} images; two batches of {batch_size} for each worker need {needed}."
        )
    stored = datasets.Dataset.from_dict({"image": images, "label": [0] * len(images)})
    counts = {"in memory": (len(images),)}
    source = TableSource(stored, ("image", "label"), ("any",), "in memory", counts, [("any",)])
    transform = TrainingTransform(
        (image_size, image_size), tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD), augmentation
    )
    ours = TrainingLoader(source, transform, batch_size=batch_size, num_workers=num_workers)
    decoding = TrainingLoader(source, _without_pixels, batch_size=batch_size, num_workers=num_workers)
    pipelines: dict[str, Callable[[int], Iterator[object]]] = {"svit-hf": ours.epoch, "decoding alone": decoding.epoch}
    if find_spec("torchvision"):
        plain = DataLoader(
            _InMemory(images, _torchvision_transform(transform)),
            batch_size,
            shuffle=True,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
        )
        pipelines = {"torchvision": lambda epoch: iter(plain)} | pipelines
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for epoch in range(repeats):
        for name, pipeline in pipelines.items():
            seconds[name].append(_seconds_per_batch(pipeline(epoch), max(1, num_workers)) / batch_size)
    return {name: tuple(measured) for name, measured in seconds.items()}


def _seconds_per_batch(batches: Iterator[object], num_processes: int) -> float:
    """Return the seconds of one process, from its first batch to its last: how it starts and ends does not count."""
    times = [time.perf_counter() for _ in batches][num_processes - 1 :]
    return (times[-1] - times[0]) * num_processes / (len(times) - 1)


def _encoded(rows: Iterator[Row]) -> Iterator[bytes]:
    for row in rows:
        try:
            decode_image(row.image)
        except DecodingError:
            continue
        assert row.image is not None
        yield row.image if isinstance(row.image, bytes) else Path(row.image).read_bytes()


def _without_pixels(image: Image.Image, sample: SampleKey) -> torch.Tensor:
    return torch.empty(0)


class _InMemory(Dataset[torch.Tensor]):
    def __init__(self, encoded: Sequence[bytes], transform: Callable[[Image.Image], torch.Tensor]):
        self.encoded = encoded
        self.transform = transform

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.encoded[index])) as image:
            return self.transform(image.convert("RGB"))


def _torchvision_transform(ours: TrainingTransform) -> Callable[[Image.Image], torch.Tensor]:
    from torchvision.transforms import v2

    options = ours.options
    transform: Callable[[Image.Image], torch.Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(ours.size, options.scale, options.ratio, RESAMPLING[options.interpolation]),
            v2.RandomHorizontalFlip(options.horizontal_flip),
            *([v2.RandAugment(2, 9)] if options.randaugment else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ours.mean.flatten().tolist(), ours.std.flatten().tolist(), inplace=True),
            *([v2.RandomErasing(options.random_erasing, value="random")] if options.random_erasing else []),
        ]
    )
    return transform
