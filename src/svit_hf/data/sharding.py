# SPDX-License-Identifier: Apache-2.0
"""Which sample is where: the order of an epoch and its division among updates, micro-batches and workers, as integers.

Everything here is a pure function of the arguments, so that a run continues at update `u` by being asked for update
`u`. Nothing is read, and nothing is remembered.

An update is a fixed list of *micro-batches*. Ranks only divide that list: their number changes nothing in what an
update is made of. An epoch fills *slots*: `updates * micro_batches * batch_size` of them. A slot holds one view of a
sample. With `num_views` above 1 (repeated augmentation) the slots of an epoch hold fewer samples, more often.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


# what a random permutation is for; each purpose has its own stream of random numbers
SAMPLES, SHARDS, ROTATION, BLOCKS = range(4)


class SampleKey(NamedTuple):
    """Which view of which sample is made: all that its augmentation may depend on.

    Attributes:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        sample_id: Place of the sample in the source.
        view: Number of the view, from 0, in repeated augmentation.
    """

    seed: int
    epoch: int
    sample_id: int
    view: int = 0


class Segment(NamedTuple):
    """Rows of a shard: from `first` up to and without `stop`."""

    shard: int
    first: int
    stop: int


class Block(NamedTuple):
    """The rows that are permuted together, as their number, and the slots in the order in which they come.

    A slot is `(row, view)`, `row` counted from the first one of the block.
    """

    num_rows: int
    slots: list[tuple[int, int]]


@dataclass(frozen=True)
class EpochPlan:
    """The length of an epoch: a number of whole updates.

    Args:
        num_samples: Samples of the source.
        batch_size: Samples in a micro-batch.
        micro_batches: Micro-batches of an update, over all ranks.
        num_views: Views of each sample that an epoch shows.
        seed: Fixes the order of every epoch.
    """

    num_samples: int
    batch_size: int
    micro_batches: int = 1
    num_views: int = 1
    seed: int = 0

    @property
    def updates(self) -> int:
        """Number of updates in one epoch."""
        return self.num_samples // (self.batch_size * self.micro_batches)

    @property
    def num_slots(self) -> int:
        """Number of views in one epoch."""
        return self.updates * self.micro_batches * self.batch_size


@dataclass(frozen=True)
class MapPlan(EpochPlan):
    """Parts of a permutation of all samples. The slots of an update are consecutive."""

    def order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples in the order of an epoch, and for each how often it came before."""
        permutation = _random(self.seed, epoch, SAMPLES).permutation(self.num_samples)
        return permutation, np.zeros_like(permutation)

    def slots(self, update: int, micro_batch: int) -> range:
        """Return the slots of a micro-batch, counted over the whole epoch.

        One view per sample: the micro-batches of an update follow each other. More views: slots are dealt out, so
        that the views of a sample go to different micro-batches, as far as there are any.

        Source: `RASampler` in `datasets/samplers.py` of hhb072/STViT@c9ed9a4, for the dealing.
        """
        size = self.batch_size * self.micro_batches
        start = update * size
        if self.num_views == 1:
            return range(start + micro_batch * self.batch_size, start + (micro_batch + 1) * self.batch_size)
        return range(start + micro_batch, start + size, self.micro_batches)

    def num_used(self) -> int:
        """Return the number of different samples of an epoch."""
        return -(-self.num_slots // self.num_views)


@dataclass(frozen=True)
class BalancedPlan(MapPlan):
    """As many samples as there are, with every class equally often.

    Samples of a small class come several times, those of a large one are partly left out: of a class, each sample
    comes as often as any other, or once more. Which ones do changes with the epoch.

    Args:
        labels: Class of each sample.
    """

    labels: tuple[int, ...] = ()

    def order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples in the order of an epoch, and for each how often it came before."""
        generator = _random(self.seed, epoch, SAMPLES)
        labels = np.asarray(self.labels)
        classes = np.unique(labels)
        samples, repeats = [], []
        for place, label in enumerate(generator.permutation(classes)):
            members = generator.permutation(np.flatnonzero(labels == label))
            wanted = len(share(self.num_samples, place, len(classes)))
            samples.append(np.resize(members, wanted))
            repeats.append(np.arange(wanted) // len(members))
        mixed = generator.permutation(self.num_samples)
        return np.concatenate(samples)[mixed], np.concatenate(repeats)[mixed]

    def num_used(self) -> int:
        """Return the number of different samples of an epoch, where all of its slots are filled."""
        counts = np.unique(np.asarray(self.labels), return_counts=True)[1]
        return int(np.minimum(counts, self.num_samples // len(counts)).sum())


@dataclass(frozen=True)
class StreamPlan(EpochPlan):
    """Parts of shards that are read in passing.

    The shards, permuted, are one sequence of rows, which starts at a random row and is cut into `num_ranges` ranges.
    A range may begin and end inside a shard. It is as long as its micro-batches need, so all rows that are left over
    lie together, and are others in each epoch. Along a range, rows are permuted within blocks. The micro-batches of
    the same place in their updates go round the same ranges, so that a rank reads only its own.

    Args:
        shard_sizes: Rows of each shard.
        num_ranges: Ranges of an epoch, a multiple of `micro_batches`.
        shuffle_block: Rows that are permuted together.
    """

    shard_sizes: tuple[int, ...] = ()
    num_ranges: int = 1
    shuffle_block: int = 1024

    @property
    def ranges_per_place(self) -> int:
        """Number of ranges that the micro-batches of one place in their updates go round."""
        return self.num_ranges // self.micro_batches

    def range_of(self, update: int, micro_batch: int) -> tuple[int, int]:
        """Return the range that a micro-batch comes from, and which micro-batch of that range it is."""
        batch, turn = divmod(update, self.ranges_per_place)
        return micro_batch * self.ranges_per_place + turn, batch

    def num_range_slots(self, index: int) -> int:
        """Return the number of slots of a range."""
        turn = index % self.ranges_per_place
        return len(range(turn, self.updates, self.ranges_per_place)) * self.batch_size

    def num_range_rows(self, index: int) -> int:
        """Return the number of rows of a range."""
        return -(-self.num_range_slots(index) // self.num_views)

    def rows_of_range(self, index: int) -> range:
        """Return the positions of a range in the epoch's sequence of rows."""
        before = list(accumulate(map(self.num_range_rows, range(index + 1)), initial=0))
        return range(before[index], before[index + 1])

    def num_used(self) -> int:
        """Return the number of different samples of an epoch."""
        return sum(map(self.num_range_rows, range(self.num_ranges)))

    def segments(self, epoch: int, rows: range) -> Iterator[Segment]:
        """Yield where positions of the epoch's sequence lie in the source."""
        order = _random(self.seed, epoch, SHARDS).permutation(len(self.shard_sizes)).tolist()
        start = int(_random(self.seed, epoch, ROTATION).integers(self.num_samples)) + rows.start
        yield from segments(self.shard_sizes, order, start, len(rows))

    def blocks(self, epoch: int, index: int, first_block: int = 0) -> Iterator[Block]:
        """Yield the blocks of a range from the given one on."""
        size, num_slots = self.shuffle_block * self.num_views, self.num_range_slots(index)
        for block in range(first_block, -(-num_slots // size)):
            length = min(size, num_slots - block * size)
            order = _random(self.seed, epoch, BLOCKS, index, block).permutation(length).tolist()
            yield Block(-(-length // self.num_views), [divmod(slot, self.num_views) for slot in order])


def segments(shard_sizes: tuple[int, ...], order: list[int], start: int, length: int) -> Iterator[Segment]:
    """Yield where `length` rows lie, from row `start` on, of shards that follow each other in a circle.

    Args:
        shard_sizes: Rows of each shard.
        order: The shards in the order in which they follow each other.
        start: First row; counted on past the end, where the shards begin again.
        length: Rows to find, at most as many as there are.
    """
    start %= max(1, sum(shard_sizes))
    for shard in [*order, *order]:
        size = shard_sizes[shard]
        stop = min(size, start + length)
        if start < stop:
            yield Segment(shard, start, stop)
            length -= stop - start
        start = max(0, start - size)
        if length <= 0:
            return


def share(length: int, index: int, count: int) -> range:
    """Return the part `index` of `count` consecutive parts of `range(length)` that are as equal as they can be."""
    return range(length * index // count, length * (index + 1) // count)


def _random(seed: int, epoch: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, *purpose])
