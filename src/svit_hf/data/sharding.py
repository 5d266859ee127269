# SPDX-License-Identifier: Apache-2.0
"""Which sample is where: the order of an epoch and its division among ranks, steps and workers, as integers.

Everything here is a pure function of the arguments, so that a run continues at step `s` by being asked for step `s`.
Nothing is read, and nothing is remembered.

An epoch fills *slots*: `steps * world_size * batch_size` of them, so many for every rank in every step. A slot holds
one view of one sample. With `num_views` above 1 (repeated augmentation) the views of a sample lie side by side, and
the slots of an epoch hold fewer samples, more often.
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
    """Say which view of which sample is made: all that its augmentation may depend on.

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
    """Name rows of a shard: from `first` up to and without `stop`."""

    shard: int
    first: int
    stop: int


class Block(NamedTuple):
    """Give the rows that are permuted together, as their number, and the slots in the order in which they come.

    A slot is `(row, view)`, `row` counted from the first one of the block.
    """

    num_rows: int
    slots: list[tuple[int, int]]


@dataclass(frozen=True)
class EpochPlan:
    """Say how long an epoch is: the same number of whole batches for every rank.

    Args:
        num_samples: Samples of the source.
        batch_size: Samples in a batch of one rank.
        world_size: Ranks.
        steps_multiple_of: The number of steps is rounded down to a multiple of this, the batches of an update.
        num_views: Views of each sample that an epoch shows.
        seed: Fixes the order of every epoch.
    """

    num_samples: int
    batch_size: int
    world_size: int = 1
    steps_multiple_of: int = 1
    num_views: int = 1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Return the number of batches of one rank in one epoch."""
        steps = self.num_samples // (self.batch_size * self.world_size)
        return steps - steps % self.steps_multiple_of

    @property
    def num_slots(self) -> int:
        """Return the number of views over all ranks in one epoch."""
        return self.steps * self.batch_size * self.world_size


@dataclass(frozen=True)
class MapPlan(EpochPlan):
    """Divide a permutation of all samples.

    The slots of a step are consecutive, whatever the number of ranks is that divide them.
    """

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples in the order of an epoch."""
        return _random(self.seed, epoch, SAMPLES).permutation(self.num_samples)

    def slots(self, step: int, rank: int) -> range:
        """Return the slots of a batch, counted over the whole epoch.

        One view per sample: ranks take consecutive batches, so that two ranks see the batches that one rank would see
        in twice as many steps. More views: slots are dealt out, so that the views of a sample go to different ranks,
        as far as there are any.

        Source: `RASampler` in `datasets/samplers.py` of hhb072/STViT@c9ed9a4, for the dealing.
        """
        start = step * self.batch_size * self.world_size
        if self.num_views == 1:
            return range(start + rank * self.batch_size, start + (rank + 1) * self.batch_size)
        return range(start + rank, start + self.batch_size * self.world_size, self.world_size)

    def num_used(self) -> int:
        """Return the number of different samples of an epoch."""
        return -(-self.num_slots // self.num_views)


@dataclass(frozen=True)
class StreamPlan(EpochPlan):
    """Divide shards that are read in passing.

    The shards, permuted, are one sequence of rows, which starts at a random row and is cut into
    `world_size * num_ranges` ranges. A range may begin and end inside a shard. It is as long as its batches need,
    so all rows that are left over lie together, and are others in each epoch. Along a range, rows are permuted within
    blocks.

    Args:
        shard_sizes: Rows of each shard.
        num_ranges: Ranges of one rank, which its steps go round.
        shuffle_block: Rows that are permuted together.
    """

    shard_sizes: tuple[int, ...] = ()
    num_ranges: int = 1
    shuffle_block: int = 1024

    def range_of_step(self, step: int) -> tuple[int, int]:
        """Return the range that a step's batch comes from, and which batch of that range it is."""
        return step % self.num_ranges, step // self.num_ranges

    def num_range_slots(self, index: int) -> int:
        """Return the number of slots of a rank's range."""
        return len(range(index, self.steps, self.num_ranges)) * self.batch_size

    def num_range_rows(self, index: int) -> int:
        """Return the number of rows of a rank's range."""
        return -(-self.num_range_slots(index) // self.num_views)

    def rows_of_range(self, rank: int, index: int) -> range:
        """Return the positions of a range in the epoch's sequence of rows."""
        before = list(accumulate(map(self.num_range_rows, range(self.num_ranges)), initial=0))
        start = rank * before[-1]
        return range(start + before[index], start + before[index + 1])

    def num_used(self) -> int:
        """Return the number of different samples of an epoch."""
        return self.world_size * sum(map(self.num_range_rows, range(self.num_ranges)))

    def segments(self, epoch: int, rows: range) -> Iterator[Segment]:
        """Yield where positions of the epoch's sequence lie in the source."""
        order = _random(self.seed, epoch, SHARDS).permutation(len(self.shard_sizes)).tolist()
        start = int(_random(self.seed, epoch, ROTATION).integers(self.num_samples)) + rows.start
        yield from segments(self.shard_sizes, order, start, len(rows))

    def blocks(self, epoch: int, rank: int, index: int, first_block: int = 0) -> Iterator[Block]:
        """Yield the blocks of a range from the given one on."""
        size, num_slots = self.shuffle_block * self.num_views, self.num_range_slots(index)
        for block in range(first_block, -(-num_slots // size)):
            length = min(size, num_slots - block * size)
            purpose = (BLOCKS, rank * self.num_ranges + index, block)
            order = _random(self.seed, epoch, *purpose).permutation(length).tolist()
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
