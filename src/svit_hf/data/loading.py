# SPDX-License-Identifier: Apache-2.0
"""Batches for training and evaluation: what `sharding.py` says is read, decoded and transformed in worker processes.

Sharding happens here and nowhere else: a loader belongs to one rank, and is never given to `Accelerator.prepare`,
which would divide it once more.
"""

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils import signal_handling

from svit_hf.data.decoding import BadImage, DecodingError
from svit_hf.data.options import DataOptions
from svit_hf.data.sharding import BalancedPlan, MapPlan, SampleKey, Segment, StreamPlan, share
from svit_hf.data.sources import ImageSource, IndexedSource, Row
from svit_hf.errors import DataError, SViTError


# what a source makes of its examples; beside that `sample_ids`, the places of the samples in the source, int64 `(B,)`,
# and `bad_images`, those that could not be decoded
Batch = dict[str, Any]
# of what the source decodes, a picture mostly
Transform = Callable[[Any, SampleKey], Any]
Item = TypeVar("Item")

MAX_WORKERS = 8


@dataclass(frozen=True)
class Coverage:
    """What one epoch covers, over all ranks.

    Attributes:
        num_used: Different samples that an epoch shows.
        num_views: Views of each.
        update_size: Images of one update, over all ranks.
        advice: What would make reading faster, or empty.
        is_balanced: Whether every class comes equally often.
    """

    num_samples: int
    num_used: int
    num_views: int
    updates: int
    update_size: int
    advice: str
    is_balanced: bool = False

    @property
    def remainder(self) -> int:
        """Number of samples that an epoch leaves out."""
        return self.num_samples - self.num_used

    def text(self) -> str:
        """Return it in words."""
        once = "once" if self.num_views == 1 else f"in {self.num_views} augmented views"
        text = (
            f"an epoch is {self.updates} updates of {self.update_size} images and shows {self.num_used} of "
            f"{self.num_samples} images {once}"
        )
        if self.is_balanced:
            text = (
                f"an epoch is {self.updates} updates of {self.update_size} images, of each class equally many: it "
                f"shows at most {self.num_used} of {self.num_samples} different images, those of small classes "
                "several times, each time augmented anew"
            )
        elif self.remainder:
            text += f"; the remainder of {self.remainder} is dropped, others in each epoch"
        return f"{text}. {self.advice}" if self.advice else f"{text}."


class TrainingLoader:
    """The training batches of one rank, for any epoch and from any step on.

    A step of a rank is a micro-batch. An update has `micro_batches` of them, and each rank the same number, side by
    side. What a micro-batch is made of is a function of the source, the sizes, the seed, the epoch and its place: not
    of the ranks, nor of the workers. A stream is read in `num_ranges` ranges at a time, and depends on that number.

    Args:
        source: The images.
        transform: Makes an example of what the source decodes, such as a tensor `(3, H, W)` of a picture; every random
            choice in it has to follow from the key.
        batch_size: Images in a micro-batch.
        micro_batches: Micro-batches of an update, over all ranks; a multiple of `world_size`.
        rank: This rank, from 0.
        world_size: Number of ranks.
        num_workers: Processes that read, decode and transform; 0 for this one.
        seed: Fixes the order.
        num_views: Views of each sample that an epoch shows; it shows fewer samples then.
        labels: Class of each sample, if every class shall come equally often; only of indexed sources.
        shuffle_block: Rows of a stream that are permuted together.
        num_ranges: Ranges of a stream, over all ranks, a multiple of `micro_batches`; by default at least one per
            worker. A run that goes on with another number of workers or ranks has to state the former number here.

    Attributes:
        steps_per_epoch: Micro-batches of this rank in an epoch.

    Raises:
        SViTError: If the source is too small for a single update, or the micro-batches cannot be divided.
    """

    def __init__(  # noqa: PLR0913 - a run's position is made of that many numbers
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        micro_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        num_views: int = 1,
        labels: Sequence[int] | None = None,
        shuffle_block: int = 1024,
        num_ranges: int | None = None,
    ):
        micro_batches = micro_batches or world_size
        if micro_batches % world_size:
            raise SViTError(
                f"an update has {micro_batches} micro-batches, which {world_size} ranks cannot divide evenly."
            )
        num_readers = world_size * max(1, num_workers)
        self.num_ranges = num_ranges or micro_batches * -(-num_readers // micro_batches)
        if self.num_ranges % micro_batches:
            raise SViTError(f"`num_ranges` is {self.num_ranges}; it has to be a multiple of {micro_batches}.")
        common = (source.num_samples, batch_size, micro_batches, num_views, seed)
        plan: MapPlan | StreamPlan = MapPlan(*common)
        if labels is not None:
            plan = BalancedPlan(*common, tuple(labels))
        if source.is_streaming:
            plan = StreamPlan(*common, source.shard_sizes, self.num_ranges, shuffle_block)
        self.maker = _BatchMaker(source, transform)
        self.plan = plan
        self.num_workers = num_workers
        steps_per_update = micro_batches // world_size
        self.places = range(rank * steps_per_update, (rank + 1) * steps_per_update)
        self.updates_per_epoch = plan.updates
        self.steps_per_epoch = plan.updates * steps_per_update
        if plan.updates == 0:
            raise SViTError(
                f"{source.num_samples} images are too few for one update: {micro_batches} micro-batches of "
                f"{batch_size} images need {micro_batches * batch_size}."
            )
        advice = _advice(source, self.num_ranges) if source.is_streaming else ""
        self.coverage = Coverage(
            source.num_samples,
            plan.num_used(),
            num_views,
            plan.updates,
            micro_batches * batch_size,
            advice,
            is_balanced=labels is not None,
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of this rank from `start_step` on, whatever was read before.

        Raises:
            SViTError: If the epoch has no such step.
            DataError: If all images of a batch are broken, a label is impossible, a file cannot be read, or a worker
                was killed.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise SViTError(f"`start_step` is {start_step}; an epoch has {self.steps_per_epoch} steps.")
        steps = range(start_step, self.steps_per_epoch)
        batches = _StreamedBatches if isinstance(self.plan, StreamPlan) else _IndexedBatches
        return load(batches(self.maker, self.plan, self.places, epoch, steps), self.num_workers)


class EvaluationLoader:
    """Every sample of a source exactly once, over all ranks.

    Which samples share a batch depends neither on the workers nor on the ranks: what a model computes of an image
    depends on the size of its batch in the last digits. `sample_ids` tell which is which; batches do not come in the
    order of the source if there are several workers.

    A rank may have more batches than another, and a batch may be smaller than others: broken images are left out and
    only named in `bad_images`. A batch whose images are all broken has no rows.

    The arguments are those of `TrainingLoader`; of the `batch_size` images of a batch, some may be broken.

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
        self.batches = share(-(-source.num_samples // batch_size), rank, world_size)
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of this rank."""
        return load(_EvaluationBatches(self.maker, self.batches, self.batch_size), self.num_workers)


@dataclass(frozen=True)
class _BatchMaker:
    source: ImageSource
    transform: Transform

    def training_batch(self, rows: list[tuple[Row, int]], seed: int, epoch: int) -> Batch:
        """Make a batch that has a row for each one given: the next good one takes the place of a broken image."""
        made, bad_images = self._make([(row, SampleKey(seed, epoch, row.sample_id, view)) for row, view in rows])
        good = [index for index, example in enumerate(made) if example is not None]
        if not good:
            raise DataError(
                f"all {len(rows)} images of a batch are broken; the first is row {bad_images[0].row} of "
                f"{bad_images[0].source}: {bad_images[0].reason}"
            )
        sources = [min((index for index in good if index >= place), default=good[0]) for place in range(len(rows))]
        return self._batch([(rows[index][0], made[index]) for index in sources], bad_images)

    def evaluation_batch(self, rows: list[Row]) -> Batch:
        """Make a batch of the images that are not broken."""
        made, bad_images = self._make([(row, SampleKey(0, 0, row.sample_id)) for row in rows])
        good = [(row, example) for row, example in zip(rows, made, strict=True) if example is not None]
        return self._batch(good, bad_images)

    def _make(self, samples: list[tuple[Row, SampleKey]]) -> tuple[list[Any], list[BadImage]]:
        made: list[Any] = []
        bad_images = []
        for row, key in samples:
            try:
                decoded = self.source.decode(row)
            except DecodingError as error:
                bad_images.append(BadImage(row.sample_id, *self.source.locate(row.sample_id), str(error)))
                made.append(None)
            else:
                made.append(self.transform(decoded, key))
        return made, bad_images

    def _batch(self, samples: list[tuple[Row, Any]], bad_images: list[BadImage]) -> Batch:
        sample_ids = torch.tensor([row.sample_id for row, _ in samples], dtype=torch.int64)
        return {**self.source.batch(samples), "sample_ids": sample_ids, "bad_images": bad_images}


@dataclass(frozen=True)
class _Batches(IterableDataset[Batch]):
    """The steps of a rank, of which a worker gives its own: the micro-batches at its places, update by update.

    A `DataLoader` takes batches from its workers in turn: worker `i` of `n` gives the steps `i`, `i + n`, ... of those
    that are left.
    """

    maker: _BatchMaker
    plan: Any
    places: range
    epoch: int
    steps: range

    def own_steps(self) -> Iterator[tuple[int, int]]:
        """Yield the update and the micro-batch of each step that this worker has to give."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in self.steps[first::stride]:
            update, place = divmod(step, len(self.places))
            yield update, self.places[place]


class _IndexedBatches(_Batches):
    """Batches of samples that can be read at any time."""

    def __iter__(self) -> Iterator[Batch]:
        source, plan = self.maker.source, self.plan
        assert isinstance(source, IndexedSource)
        samples, repeats = plan.order(self.epoch)
        for place in self.own_steps():
            rows = []
            for slot in plan.slots(*place):
                position, view = divmod(slot, plan.num_views)
                # a sample that comes again is augmented anew
                view += int(repeats[position]) * plan.num_views
                rows.append((source.row(int(samples[position])), view))
            yield self.maker.training_batch(rows, plan.seed, self.epoch)


class _StreamedBatches(_Batches):
    """Batches of rows that are read in passing, from whichever ranges of the rank they are."""

    def __iter__(self) -> Iterator[Batch]:
        ranges: dict[int, tuple[int, Iterator[tuple[Row, int]]]] = {}
        size = self.plan.batch_size
        for place in self.own_steps():
            index, batch = self.plan.range_of(*place)
            done, slots = ranges.get(index) or (batch, self._slots(index, batch * size))
            # with as many workers as ranges nothing is between
            rows = list(islice(slots, (batch - done) * size, (batch - done + 1) * size))
            ranges[index] = (batch + 1, slots)
            yield self.maker.training_batch(rows, self.plan.seed, self.epoch)

    def _slots(self, index: int, first: int) -> Iterator[tuple[Row, int]]:
        """Yield rows and views of a range, from slot `first` on."""
        plan = self.plan
        skipped, offset = divmod(first, plan.shuffle_block * plan.num_views)
        positions = plan.rows_of_range(index)[skipped * plan.shuffle_block :]
        rows = read_rows(self.maker.source, plan.segments(self.epoch, positions))
        for block in plan.blocks(self.epoch, index, skipped):
            held = list(islice(rows, block.num_rows))
            for row, view in block.slots[offset:]:
                yield held[row], view
            offset = 0


@dataclass(frozen=True)
class _EvaluationBatches(IterableDataset[Batch]):
    maker: _BatchMaker
    batches: range
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        own = share(len(self.batches), worker.id, worker.num_workers) if worker else range(len(self.batches))
        batches = self.batches[own.start : own.stop]
        source = self.maker.source
        part = range(source.num_samples)[batches.start * self.batch_size : batches.stop * self.batch_size]
        rows = source.rows_at(part)
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


# iterators with workers, which have to be gone before Python waits for its child processes
_RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()


def load(batches: Iterable[Item], num_workers: int) -> Iterator[Item]:
    """Yield whole batches, from worker processes, each of which iterates over its own, or from this one.

    An error in a worker is raised here as it would be without workers. However the iteration ends, the workers are
    killed: they ignore what launchers send, and would otherwise be waited for.

    Raises:
        SViTError: What a worker raised.
        DataError: If a worker is gone, for want of memory, say.
    """
    loader = DataLoader(
        _Caught(batches),
        # batches come whole out of the workers
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_main_process,
    )
    iterator = iter(loader)
    if num_workers:
        _RUNNING.add(iterator)
    try:
        while True:
            try:
                with explaining_killed_workers():
                    item = next(iterator)
            except StopIteration:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        _kill_workers(iterator)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker, where raising it would add a traceback and lose its class."""

    error: SViTError


class _Caught(IterableDataset[Any]):
    def __init__(self, items: Any):
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from map(_in_shared_memory, self.items)
        except SViTError as error:
            yield _Failure(error)


def _in_shared_memory(item: Any) -> Any:
    """Bring the tensors of a worker's batch to where the main process can read them.

    PyTorch would do so in a thread, where a failure loses the batch, and the main process waits for it for ever.

    Raises:
        DataError: If there is no room.
    """
    if get_worker_info() is None:
        return item
    try:
        for tensor in _tensors_in(item):
            tensor.share_memory_()
    except RuntimeError as error:
        raise DataError(_explanation_of_killed_worker(error)) from error
    return item


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(part)
    elif is_dataclass(value):
        yield from _tensors_in(vars(value))


def _kill_workers(iterator: Any) -> None:
    workers = getattr(iterator, "_workers", ())
    if workers and iterator._worker_pids_set:
        # PyTorch watches over its workers, and would call their end a failure
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False
    for worker in workers:
        worker.kill()
        worker.join()
    _RUNNING.discard(iterator)


@atexit.register
def kill_workers() -> None:
    """End all worker processes: tracebacks may hold their iterators, and Python would wait for them for ever."""
    for iterator in list(_RUNNING):
        _kill_workers(iterator)


@contextmanager
def explaining_killed_workers() -> Iterator[None]:
    """Say what to do when PyTorch finds a worker gone: it may do so anywhere in the main thread, by a signal.

    Raises:
        DataError: Instead.
    """
    try:
        yield
    except RuntimeError as error:
        # the words of its own watch over workers
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(_explanation_of_killed_worker(error)) from error


def _explanation_of_killed_worker(error: RuntimeError) -> str:
    cause = f" {error.__cause__}" if error.__cause__ else ""
    text = " ".join(f"{error}{cause}".split())
    if "shared memory" in text or "Bus error" in text or "shm" in text:
        return (
            "a process that reads images found no shared memory: enlarge /dev/shm (docker run --shm-size=8g), or "
            f"lower `data.num_workers`. PyTorch said: {text}"
        )
    return (
        "a process that reads images was ended from outside, mostly because memory ran out; lower `data.num_workers` "
        f"or `data.shuffle_block`. PyTorch said: {text}"
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
