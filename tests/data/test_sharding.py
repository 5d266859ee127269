# SPDX-License-Identifier: Apache-2.0
"""The division of an epoch, over many sizes: nothing twice, nothing lost but the remainder, the same from any step."""

import random
from itertools import islice

import pytest

from svit_hf.data.sharding import MapPlan, StreamPlan, segments, share


def samples_of_map(plan, rank, epoch, start_step=0):
    """Return the `(sample, view)` of each step."""
    order = plan.permutation(epoch).tolist()
    return [
        [(order[slot // plan.num_views], slot % plan.num_views) for slot in plan.slots(step, rank)]
        for step in range(start_step, plan.steps)
    ]


def samples_of_stream(plan, rank, epoch):
    """Return the `(shard, row, view)` of each step."""
    ranges = []
    for index in range(plan.num_ranges):
        rows = [
            (shard, row)
            for shard, first, stop in plan.segments(epoch, plan.rows_of_range(rank, index))
            for row in range(first, stop)
        ]
        slots, remaining = [], iter(rows)
        for block in plan.blocks(epoch, rank, index):
            held = list(islice(remaining, block.num_rows))
            slots += [(*held[row], view) for row, view in block.slots]
        assert next(remaining, None) is None
        ranges.append(slots)
    steps = []
    for step in range(plan.steps):
        index, batch = plan.range_of_step(step)
        steps.append(ranges[index][batch * plan.batch_size : (batch + 1) * plan.batch_size])
    return steps


def random_sizes(number):
    """Return so many random layouts: arguments of an `EpochPlan`, and sizes of shards that make its samples."""
    generator = random.Random(number)
    for _ in range(number):
        shards = (7, *(generator.choice([0, 1, 7, 30, 64]) for _ in range(generator.randint(0, 8))))
        plan = {
            "num_samples": sum(shards),
            "batch_size": generator.randint(1, 6),
            "world_size": generator.randint(1, 4),
            "steps_multiple_of": generator.randint(1, 3),
            "num_views": generator.choice([1, 1, 2, 3]),
            "seed": generator.randint(0, 5),
        }
        yield plan, shards, {"num_ranges": generator.randint(1, 4), "shuffle_block": generator.choice([1, 5, 1000])}


def assert_complete(plan, ranks, num_ranges=1):
    views = [view for steps in ranks for step in steps for view in step]
    assert {len(steps) for steps in ranks} == {plan.steps}
    assert {len(step) for steps in ranks for step in steps} <= {plan.batch_size}
    assert len(set(views)) == len(views) == plan.num_slots
    # what is left out is less than a step, or than the steps of an update
    assert 0 <= plan.num_samples - plan.num_slots < plan.batch_size * plan.world_size * plan.steps_multiple_of
    samples = {view[:-1] for view in views}
    assert len(samples) == plan.num_used()
    # whole sets of views, but for one at the end of each range
    assert plan.num_slots <= len(samples) * plan.num_views < plan.num_slots + plan.num_views * num_ranges + 1


def test_map_covers_all_but_the_remainder():
    for arguments, _, _ in random_sizes(200):
        plan = MapPlan(**arguments)
        assert_complete(plan, [samples_of_map(plan, rank, 2) for rank in range(plan.world_size)])


def test_stream_covers_all_but_the_remainder():
    for arguments, shards, ranges in random_sizes(200):
        plan = StreamPlan(**arguments, shard_sizes=shards, **ranges)
        ranks = [samples_of_stream(plan, rank, 2) for rank in range(plan.world_size)]
        assert_complete(plan, ranks, plan.world_size * plan.num_ranges)


def test_stream_block_is_found_without_those_before_it():
    for arguments, shards, ranges in random_sizes(50):
        plan = StreamPlan(**arguments, shard_sizes=shards, **ranges)
        for index in range(plan.num_ranges):
            blocks = list(plan.blocks(1, 0, index))
            for first in range(len(blocks)):
                assert list(plan.blocks(1, 0, index, first)) == blocks[first:]


@pytest.mark.parametrize("plan", [MapPlan(100, 5), StreamPlan(100, 5, shard_sizes=(40, 60))], ids=["map", "stream"])
def test_order_depends_on_seed_and_epoch(plan):
    def order(plan, epoch):
        return samples_of_map(plan, 0, epoch) if isinstance(plan, MapPlan) else samples_of_stream(plan, 0, epoch)

    other_seed = type(plan)(**(vars(plan) | {"seed": 1}))
    assert order(plan, 0) == order(plan, 0)
    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(other_seed, 0)


def test_map_step_has_the_same_samples_however_many_ranks_divide_it():
    for arguments, _, _ in random_sizes(50):
        plan = MapPlan(**arguments)
        whole = MapPlan(**(arguments | {"batch_size": plan.batch_size * plan.world_size, "world_size": 1}))
        ranks = [samples_of_map(plan, rank, 0) for rank in range(plan.world_size)]
        for step, together in enumerate(samples_of_map(whole, 0, 0)):
            assert sorted(sample for steps in ranks for sample in steps[step]) == sorted(together)


def test_map_batches_of_two_ranks_are_those_of_one_rank_in_twice_the_steps():
    two, one = MapPlan(100, 5, world_size=2), MapPlan(100, 5, steps_multiple_of=2)
    first, second = (samples_of_map(two, rank, 0) for rank in range(2))
    assert [step for steps in zip(first, second, strict=True) for step in steps] == samples_of_map(one, 0, 0)


def test_views_of_a_sample_go_to_different_ranks():
    plan = MapPlan(90, 6, world_size=3, num_views=3)
    for step in zip(*(samples_of_map(plan, rank, 0) for rank in range(3)), strict=True):
        samples = [{sample for sample, _ in batch} for batch in step]
        assert samples[0] == samples[1] == samples[2]
        assert [len(batch) for batch in samples] == [6, 6, 6]


def test_left_over_rows_of_a_stream_are_others_in_each_epoch():
    plan = StreamPlan(103, 10, shard_sizes=(103,))
    missing = [
        frozenset(range(103)) - {row for step in samples_of_stream(plan, 0, epoch) for _, row, _ in step}
        for epoch in range(20)
    ]
    assert {len(rows) for rows in missing} == {3}
    assert len(set(missing)) > 15


def test_shards_are_read_in_long_pieces():
    plan = StreamPlan(1000, 10, world_size=2, shard_sizes=(100,) * 10, num_ranges=2)
    for rank in range(2):
        for index in range(2):
            # 250 rows: three or four pieces of shards of 100
            assert len(list(plan.segments(0, plan.rows_of_range(rank, index)))) <= 4


def test_rows_of_a_stream_are_mixed_within_blocks_only():
    plan = StreamPlan(1000, 10, shard_sizes=(1000,), shuffle_block=50)
    first = [row for step in samples_of_stream(plan, 0, 0)[:5] for _, row, _ in step]
    assert max(first) - min(first) == 49
    assert first != sorted(first)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 6, [(2, 0, 1), (0, 0, 3), (1, 0, 2)]),
        (2, 3, [(0, 1, 3), (1, 0, 1)]),
        (5, 3, [(1, 1, 2), (2, 0, 1), (0, 0, 1)]),
        (8, 1, [(0, 1, 2)]),
        (3, 0, []),
    ],
)
def test_segments(start, length, expected):
    assert list(segments((3, 2, 1), [2, 0, 1], start, length)) == expected


def test_shares_are_equal_within_one():
    for length in range(20):
        for count in range(1, 7):
            parts = [share(length, index, count) for index in range(count)]
            assert [place for part in parts for place in part] == list(range(length))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
