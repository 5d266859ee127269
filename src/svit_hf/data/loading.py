# SPDX-License-Identifier: Apache-2.0
"""Batches for training and evaluation: what `sharding.py` says is read, decoded and transformed in worker processes.

Sharding happens here and nowhere else: a loader belongs to one rank, and is never given to `Accelerator.prepare`,
which would divide it once more.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, TypedDict

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from svit_hf.data.decoding import BadImage, DecodingError, decode_image
from svit_hf.data.options import DataOptions
from svit_hf.data.sharding import MapPlan, SampleKey, Segment, StreamPlan, segments, share
from svit_hf.data.sources import ImageSource, IndexedSource, Row
from svit_hf.errors import DataError, SViTError


class Batch(TypedDict):
    """Hold a batch of one rank.

    Attributes:
        pixel_values: `(B, 3, H, W)`, float32.
        labels: Numbers of the classes, `(B,)`, int64.
        sample_ids: Places of the samples in the source, `(B,)`, int64.
        bad_images: Images that could not be decoded.
    """

    pixel_values: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    bad_images: list[BadImage]


Transform = Callable[[Image.Image, SampleKey], torch.Tensor]

MAX_WORKERS = 8


@dataclass(frozen=True)
class Coverage:
    """Say what one epoch covers, over all ranks.

    Attributes:
        num_samples: Samples of the source.
        num_used: Different samples that an epoch shows.
        num_views: Views of each.
        steps: Batches of each rank.
        global_batch: Samples of one step over all ranks.
        advice: What would make reading faster, or empty.
    """

    num_samples: int
    num_used: int
    num_views: int
    steps: int
    global_batch: int
    advice: str

    @property
    def remainder(self) -> int:
        """Return the number of samples that an epoch leaves out."""
        return self.num_samples - self.num_used

    def text(self) -> str:
        """Say it in words."""
        once = "once" if self.num_views == 1 else f"in {self.num_views} augmented views"
        text = (
            f"an epoch is {self.steps} steps of {self.global_batch} images and shows {self.num_used} of "
            f"{self.num_samples} images {once}"
        )
        if self.remainder:
            text += f"; which {self.remainder} it leaves out changes with the epoch"
        return f"{text}. {self.advice}" if self.advice else f"{text}."


class TrainingLoader:
    """Give the training batches of one rank, for any epoch and from any step on.

    The batches are a function of the arguments, the epoch and the step. For an indexed source they do not depend on
    `num_workers`; a stream is read in `world_size * num_ranges` ranges at a time, and depends on that number.

    Args:
        source: The images.
        transform: Makes a tensor `(3, H, W)` of a picture; every random choice in it has to follow from the key.
        batch_size: Images in a batch of this rank.
        rank: This rank, from 0.
        world_size: Number of ranks.
        num_workers: Processes that read, decode and transform; 0 for this one.
        seed: Fixes the order.
        steps_multiple_of: The steps of an epoch are a multiple of this: the batches of an update.
        num_views: Views of each sample that an epoch shows; it shows fewer samples then.
        shuffle_block: Rows of a stream that are permuted together.
        num_ranges: Ranges of a stream that each rank reads at a time; by default one per worker. A run that goes on
            with another number of workers has to state the former number here.

    Raises:
        SViTError: If the source is too small for a single step.
    """

    def __init__(  # noqa: PLR0913 - a run's position is made of that many numbers
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        steps_multiple_of: int = 1,
        num_views: int = 1,
        shuffle_block: int = 1024,
        num_ranges: int | None = None,
    ):
        self.num_ranges = num_ranges or max(1, num_workers)
        plan: MapPlan | StreamPlan
        common = (source.num_samples, batch_size, world_size, steps_multiple_of, num_views, seed)
        if source.is_streaming:
            plan = StreamPlan(*common, source.shard_sizes, self.num_ranges, shuffle_block)
        else:
            plan = MapPlan(*common)
        self.maker = _BatchMaker(source, transform)
        self.plan = plan
        self.rank = rank
        self.num_workers = num_workers
        self.steps_per_epoch = plan.steps
        if plan.steps == 0:
            raise SViTError(
                f"{source.num_samples} images are too few for one update: {steps_multiple_of} steps of {world_size} "
                f"ranks with `batch_size` {batch_size} need {steps_multiple_of * world_size * batch_size}."
            )
        advice = _advice(source, world_size * self.num_ranges) if source.is_streaming else ""
        self.coverage = Coverage(
            source.num_samples, plan.num_used(), num_views, plan.steps, world_size * batch_size, advice
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of this rank from `start_step` on, whatever was read before.

        Raises:
            SViTError: If the epoch has no such step.
            DataError: If all images of a batch are broken, or a label is impossible.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise SViTError(f"`start_step` is {start_step}; an epoch has {self.steps_per_epoch} steps.")
        steps = range(start_step, self.steps_per_epoch)
        batches: Dataset[Batch]
        if isinstance(self.plan, StreamPlan):
            batches = _StreamedBatches(self.maker, self.plan, self.rank, epoch, steps)
        else:
            batches = _IndexedBatches(self.maker, self.plan, self.rank, epoch, steps)
        return iter(_loader(batches, self.num_workers))


class EvaluationLoader:
    """Give every sample of a source exactly once, over all ranks.

    `sample_ids` tell which is which; with several workers they do not come in the order of the source.

    A rank may have more batches than another, and a batch may be smaller than others: broken images are left out and
    only named in `bad_images`. A batch whose images are all broken has no rows.

    Args:
        source: The images.
        transform: Makes a tensor `(3, H, W)` of a picture.
        batch_size: Images in a batch, broken ones included.
        rank: This rank, from 0.
        world_size: Number of ranks.
        num_workers: Processes that read, decode and transform; 0 for this one.

    Attributes:
        num_samples: Samples of the source, over all ranks.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ):
        self.num_samples = source.num_samples
        self.maker = _BatchMaker(source, transform)
        self.batch_size = batch_size
        self.part = share(source.num_samples, rank, world_size)
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of this rank."""
        return iter(_loader(_EvaluationBatches(self.maker, self.part, self.batch_size), self.num_workers))


@dataclass(frozen=True)
class _BatchMaker:
    source: ImageSource
    transform: Transform

    def training_batch(self, rows: list[tuple[Row, int]], seed: int, epoch: int) -> Batch:
        """Make a batch that has a row for each one given: the next good one takes the place of a broken image."""
        made, bad_images = self._make([(row, SampleKey(seed, epoch, row.sample_id, view)) for row, view in rows])
        good = [index for index, pixels in enumerate(made) if pixels is not None]
        if not good:
            raise DataError(
                f"all {len(rows)} images of a batch are broken; the first is row {bad_images[0].row} of "
                f"{bad_images[0].source}: {bad_images[0].reason}"
            )
        sources = [min((index for index in good if index >= place), default=good[0]) for place in range(len(rows))]
        return _batch([(rows[index][0], made[index]) for index in sources], bad_images)

    def evaluation_batch(self, rows: list[Row]) -> Batch:
        """Make a batch of the images that are not broken."""
        made, bad_images = self._make([(row, SampleKey(0, 0, row.sample_id)) for row in rows])
        good = [(row, pixels) for row, pixels in zip(rows, made, strict=True) if pixels is not None]
        return _batch(good, bad_images)

    def _make(self, samples: list[tuple[Row, SampleKey]]) -> tuple[list[torch.Tensor | None], list[BadImage]]:
        made: list[torch.Tensor | None] = []
        bad_images = []
        for row, key in samples:
            try:
                image = decode_image(row.image)
            except DecodingError as error:
                bad_images.append(BadImage(row.sample_id, *self.source.locate(row.sample_id), str(error)))
                made.append(None)
            else:
                made.append(self.transform(image, key))
        return made, bad_images


def _batch(samples: list[tuple[Row, Any]], bad_images: list[BadImage]) -> Batch:
    pixels = [pixels for _, pixels in samples]
    return {
        "pixel_values": torch.stack(pixels) if pixels else torch.empty(0, 3, 0, 0),
        "labels": torch.tensor([row.label for row, _ in samples], dtype=torch.int64),
        "sample_ids": torch.tensor([row.sample_id for row, _ in samples], dtype=torch.int64),
        "bad_images": bad_images,
    }


@dataclass(frozen=True)
class _IndexedBatches(Dataset[Batch]):
    """Give batches by their step."""

    maker: _BatchMaker
    plan: MapPlan
    rank: int
    epoch: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        source = self.maker.source
        assert isinstance(source, IndexedSource)
        order = _permutation(self.plan, self.epoch)
        rows = []
        for slot in self.plan.slots(self.steps[index], self.rank):
            position, view = divmod(slot, self.plan.num_views)
            rows.append((source.row(int(order[position])), view))
        return self.maker.training_batch(rows, self.plan.seed, self.epoch)


@lru_cache(maxsize=2)
def _permutation(plan: MapPlan, epoch: int) -> Any:
    return plan.permutation(epoch)


@dataclass(frozen=True)
class _StreamedBatches(IterableDataset[Batch]):
    """Give the steps that a worker has to give, round the ranges of its rank.

    A `DataLoader` takes batches from its workers in turn: worker `i` of `n` gives the steps `i`, `i + n`, ... of those
    that are left, from whichever ranges these are.
    """

    maker: _BatchMaker
    plan: StreamPlan
    rank: int
    epoch: int
    steps: range

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        ranges: dict[int, tuple[int, Iterator[tuple[Row, int]]]] = {}
        size = self.plan.batch_size
        for step in self.steps[first::stride]:
            index, batch = self.plan.range_of_step(step)
            done, slots = ranges.get(index) or (batch, self._slots(index, batch * size))
            # with as many workers as ranges nothing is between
            rows = list(islice(slots, (batch - done) * size, (batch - done + 1) * size))
            ranges[index] = (batch + 1, slots)
            yield self.maker.training_batch(rows, self.plan.seed, self.epoch)

    def _slots(self, index: int, first: int) -> Iterator[tuple[Row, int]]:
        """Yield rows and views of a range, from slot `first` on."""
        skipped, offset = divmod(first, self.plan.shuffle_block * self.plan.num_views)
        positions = self.plan.rows_of_range(self.rank, index)[skipped * self.plan.shuffle_block :]
        rows = read_rows(self.maker.source, self.plan.segments(self.epoch, positions))
        for block in self.plan.blocks(self.epoch, self.rank, index, skipped):
            held = list(islice(rows, block.num_rows))
            for row, view in block.slots[offset:]:
                yield held[row], view
            offset = 0


@dataclass(frozen=True)
class _EvaluationBatches(IterableDataset[Batch]):
    maker: _BatchMaker
    part: range
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        # whole batches: what a model computes of an image depends on the size of the batch in its last digits
        num_batches = -(-len(self.part) // self.batch_size)
        batches = share(num_batches, worker.id, worker.num_workers) if worker else range(num_batches)
        part = self.part[batches.start * self.batch_size : batches.stop * self.batch_size]
        source = self.maker.source
        order = list(range(len(source.shard_sizes)))
        rows = read_rows(source, segments(source.shard_sizes, order, part.start, len(part)))
        while batch := list(islice(rows, self.batch_size)):
            yield self.maker.evaluation_batch(batch)


def read_rows(source: ImageSource, places: Iterable[Segment]) -> Iterator[Row]:
    """Yield the rows of a source that lie in the given places."""
    for shard, first, stop in places:
        yield from source.rows(shard, first, stop)


def workers_per_rank(options: DataOptions) -> int:
    """Return how many processes read and decode for a rank: as many as asked for, or what there are CPUs for."""
    if options.num_workers is not None:
        return options.num_workers
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // num_local_ranks))


def _loader(batches: Dataset[Batch], num_workers: int) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        # batches come whole out of the workers
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_main_process,
    )


def _leave_signals_to_main_process(worker: int) -> None:
    """Ignore SIGTERM and SIGINT, which launchers send to whole groups: a run that saves first needs its workers.

    A worker ends when the main process says so, or is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _advice(source: ImageSource, num_ranges: int) -> str:
    num_shards = len(source.shard_sizes)
    if num_ranges <= num_shards:
        return ""
    return (
        f"{num_ranges} workers over all ranks share {num_shards} shards, so that most shards are read more than once; "
        "`svit-hf data shard` writes smaller ones, or use fewer workers."
    )
