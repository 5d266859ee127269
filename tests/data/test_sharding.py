# SPDX-License-Identifier: Apache-2.0
"""The division of an epoch, over many sizes: nothing twice, nothing lost but the remainder, the same from any step."""

import random
from collections import Counter
from itertools import islice

import pytest

from svit_hf.data.sharding import BalancedPlan, MapPlan, StreamPlan, segments, share


def samples_of_map(plan, epoch):
    """Return the `(sample, view)` of each micro-batch."""
    order = plan.order(epoch)[0].tolist()
    return [
        [(order[slot // plan.num_views], slot % plan.num_views) for slot in plan.slots(update, micro_batch)]
        for update in range(plan.updates)
        for micro_batch in range(plan.micro_batches)
    ]


def samples_of_stream(plan, epoch):
    """Return the `(shard, row, view)` of each micro-batch."""
    ranges = []
    for index in range(plan.num_ranges):
        rows = [
            (shard, row)
            for shard, first, stop in plan.segments(epoch, plan.rows_of_range(index))
            for row in range(first, stop)
        ]
        slots, remaining = [], iter(rows)
        for block in plan.blocks(epoch, index):
            held = list(islice(remaining, block.num_rows))
            slots += [(*held[row], view) for row, view in block.slots]
        assert next(remaining, None) is None
        ranges.append(slots)
    batches = []
    for update in range(plan.updates):
        for micro_batch in range(plan.micro_batches):
            index, batch = plan.range_of(update, micro_batch)
            batches.append(ranges[index][batch * plan.batch_size : (batch + 1) * plan.batch_size])
    return batches


def random_sizes(number):
    """Return so many random layouts: arguments of an `EpochPlan`, and sizes of shards that make its samples."""
    generator = random.Random(number)
    for _ in range(number):
        shards = (7, *(generator.choice([0, 1, 7, 30, 64]) for _ in range(generator.randint(0, 8))))
        plan = {
            "num_samples": sum(shards),
            "batch_size": generator.randint(1, 6),
            "micro_batches": generator.randint(1, 6),
            "num_views": generator.choice([1, 1, 2, 3]),
            "seed": generator.randint(0, 5),
        }
        num_ranges = plan["micro_batches"] * generator.randint(1, 4)
        yield plan, shards, {"num_ranges": num_ranges, "shuffle_block": generator.choice([1, 5, 1000])}


def assert_complete(plan, batches, num_ranges=1):
    views = [view for batch in batches for view in batch]
    assert len(batches) == plan.updates * plan.micro_batches
    assert {len(batch) for batch in batches} <= {plan.batch_size}
    assert len(set(views)) == len(views) == plan.num_slots
    # the remainder is less than an update
    assert 0 <= plan.num_samples - plan.num_slots < plan.batch_size * plan.micro_batches
    samples = {view[:-1] for view in views}
    assert len(samples) == plan.num_used()
    # whole sets of views, but for one at the end of each range
    assert plan.num_slots <= len(samples) * plan.num_views < plan.num_slots + plan.num_views * num_ranges + 1


def test_map_covers_all_but_the_remainder():
    for arguments, _, _ in random_sizes(200):
        plan = MapPlan(**arguments)
        assert_complete(plan, samples_of_map(plan, 2))


def test_stream_covers_all_but_the_remainder():
    for arguments, shards, ranges in random_sizes(200):
        plan = StreamPlan(**arguments, shard_sizes=shards, **ranges)
        assert_complete(plan, samples_of_stream(plan, 2), plan.num_ranges)


def test_micro_batches_of_a_place_have_ranges_of_their_own():
    for arguments, shards, ranges in random_sizes(50):
        plan = StreamPlan(**arguments, shard_sizes=shards, **ranges)
        owners = {}
        for update in range(plan.updates):
            for micro_batch in range(plan.micro_batches):
                index, _ = plan.range_of(update, micro_batch)
                assert owners.setdefault(index, micro_batch) == micro_batch


def test_stream_block_is_found_without_those_before_it():
    for arguments, shards, ranges in random_sizes(50):
        plan = StreamPlan(**arguments, shard_sizes=shards, **ranges)
        for index in range(plan.num_ranges):
            blocks = list(plan.blocks(1, index))
            for first in range(len(blocks)):
                assert list(plan.blocks(1, index, first)) == blocks[first:]


def test_balanced_epoch_has_every_class_equally_often():
    labels = (0,) * 70 + (1,) * 20 + (2,) * 11
    plan = BalancedPlan(101, 10, labels=labels)
    for epoch in range(3):
        samples, repeats = plan.order(epoch)
        counts = Counter(labels[sample] for sample in samples.tolist())
        assert sorted(counts.values()) == [33, 34, 34]
        times = Counter(samples.tolist())
        assert {times[sample] for sample in range(70)} == {0, 1}
        assert {times[sample] for sample in range(70, 90)} == {1, 2}
        assert {times[sample] for sample in range(90, 101)} == {3} or counts[2] == 34
        # no sample comes twice with the same number, which its augmentation follows from
        assert len(set(zip(samples.tolist(), repeats.tolist(), strict=True))) == 101
    assert plan.order(0)[0].tolist() == plan.order(0)[0].tolist() != plan.order(1)[0].tolist()
    # classes are mixed
    assert {labels[sample] for sample in plan.order(0)[0][:20].tolist()} == {0, 1, 2}


@pytest.mark.parametrize("plan", [MapPlan(100, 5), StreamPlan(100, 5, shard_sizes=(40, 60))], ids=["map", "stream"])
def test_order_depends_on_seed_and_epoch(plan):
    def order(plan, epoch):
        return samples_of_map(plan, epoch) if isinstance(plan, MapPlan) else samples_of_stream(plan, epoch)

    other_seed = type(plan)(**(vars(plan) | {"seed": 1}))
    assert order(plan, 0) == order(plan, 0)
    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(other_seed, 0)


def test_map_update_has_the_same_samples_however_it_is_divided():
    for arguments, _, _ in random_sizes(50):
        plan = MapPlan(**arguments)
        whole = MapPlan(**(arguments | {"batch_size": plan.batch_size * plan.micro_batches, "micro_batches": 1}))
        parts = samples_of_map(plan, 0)
        for update, together in enumerate(samples_of_map(whole, 0)):
            mine = parts[update * plan.micro_batches : (update + 1) * plan.micro_batches]
            assert sorted(sample for batch in mine for sample in batch) == sorted(together)


def test_views_of_a_sample_go_to_different_micro_batches():
    plan = MapPlan(90, 6, micro_batches=3, num_views=3)
    batches = samples_of_map(plan, 0)
    for update in range(plan.updates):
        samples = [{sample for sample, _ in batch} for batch in batches[3 * update : 3 * update + 3]]
        assert samples[0] == samples[1] == samples[2]
        assert [len(batch) for batch in samples] == [6, 6, 6]


def test_left_over_rows_of_a_stream_are_others_in_each_epoch():
    plan = StreamPlan(103, 10, shard_sizes=(103,))
    missing = [
        frozenset(range(103)) - {row for batch in samples_of_stream(plan, epoch) for _, row, _ in batch}
        for epoch in range(20)
    ]
    assert {len(rows) for rows in missing} == {3}
    assert len(set(missing)) > 15


def test_shards_are_read_in_long_pieces():
    plan = StreamPlan(1000, 10, micro_batches=2, shard_sizes=(100,) * 10, num_ranges=4)
    for index in range(4):
        # 250 rows: three or four pieces of shards of 100
        assert len(list(plan.segments(0, plan.rows_of_range(index)))) <= 4


def test_rows_of_a_stream_are_mixed_within_blocks_only():
    plan = StreamPlan(1000, 10, shard_sizes=(1000,), shuffle_block=50)
    first = [row for batch in samples_of_stream(plan, 0)[:5] for _, row, _ in batch]
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
