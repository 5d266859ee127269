# SPDX-License-Identifier: Apache-2.0
"""Batches over ranks and workers, against what they have to add up to."""

import os
import signal

import numpy as np
import pytest
import torch
from picture_data import write_parquet

from svit_hf.data.counts import SourceIndex
from svit_hf.data.loading import EvaluationLoader, TrainingLoader, workers_per_rank
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.errors import DataError, SViTError


NUM_TRAIN, NUM_TEST = 103, 101


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a data set whose training split is five shards of 7 to 40 pictures in two files."""
    folder = tmp_path_factory.mktemp("pictures")
    write_parquet(folder / "train-0.parquet", range(16), rows_per_group=8)
    write_parquet(folder / "train-1.parquet", range(16, NUM_TRAIN), rows_per_group=40)
    write_parquet(folder / "test-0.parquet", range(NUM_TEST), rows_per_group=30)
    return folder


def source_of(folder, streaming, split="train"):
    return open_source(DataOptions(path=str(folder), streaming=streaming), split)


def noisy_red(image, key):
    """Give the picture's number, and a random number that follows from the key."""
    noise = np.random.default_rng(list(key)).integers(1000)
    return torch.tensor([image.getpixel((0, 0))[0], noise, key.view], dtype=torch.float32)[:, None, None]


def loaders(source, world_size=1, **arguments):
    arguments = {"batch_size": 6, "seed": 3, "shuffle_block": 10} | arguments
    return [
        TrainingLoader(source, noisy_red, rank=rank, world_size=world_size, **arguments) for rank in range(world_size)
    ]


def seen(batches):
    """Return all that there is to know of batches, as nested lists."""
    return [(b["sample_ids"].tolist(), b["labels"].tolist(), b["pixel_values"].flatten(1).tolist()) for b in batches]


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_pixels_and_labels_belong_to_the_sample(folder, streaming):
    (loader,) = loaders(source_of(folder, streaming))
    for batch in loader.epoch(0):
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["labels"].dtype == batch["sample_ids"].dtype == torch.int64
        assert batch["bad_images"] == []
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["sample_ids"].tolist()
        assert batch["labels"].tolist() == [number % 2 for number in batch["sample_ids"].tolist()]


def test_five_shards_on_two_ranks_with_two_workers_each(folder):
    source = source_of(folder, streaming=True)
    assert source.shard_sizes == (8, 8, 40, 40, 7)
    ranks = loaders(source, world_size=2, num_workers=2, micro_batches=6)
    batches = [seen(loader.epoch(1)) for loader in ranks]
    ids = [number for rank in batches for batch in rank for number in batch[0]]
    # 103 // 36 is 2 updates, of 3 steps on each rank
    assert [len(rank) for rank in batches] == [6, 6] == [loader.steps_per_epoch for loader in ranks]
    assert len(set(ids)) == len(ids) == 72 == ranks[0].coverage.num_used
    assert ranks[0].coverage.remainder == 31


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_any_step_is_reached_at_once(folder, streaming, num_workers):
    loader = loaders(source_of(folder, streaming), world_size=2, num_workers=num_workers, num_ranges=4)[1]
    whole = seen(loader.epoch(2))
    for step in (0, 1, 3, loader.steps_per_epoch):
        assert seen(loader.epoch(2, step)) == whole[step:]
    assert seen(loader.epoch(0)) != whole


def test_stream_reads_as_many_ranges_as_it_has_workers(folder):
    source = source_of(folder, streaming=True)
    (by_workers,), (by_ranges,) = loaders(source, num_workers=2), loaders(source, num_ranges=2)
    assert seen(by_workers.epoch(0)) == seen(by_ranges.epoch(0))
    assert seen(loaders(source)[0].epoch(0)) != seen(by_ranges.epoch(0))


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_repeated_augmentation_shows_a_third_three_times(folder, streaming):
    ranks = loaders(source_of(folder, streaming), world_size=2, num_views=3)
    batches = [batch for loader in ranks for batch in seen(loader.epoch(0))]
    views = [
        (number, pixels[2]) for numbers, _, images in batches for number, pixels in zip(numbers, images, strict=True)
    ]
    noises = {
        (number, pixels[1]) for numbers, _, images in batches for number, pixels in zip(numbers, images, strict=True)
    }
    assert len(set(views)) == len(views) == 96
    assert len({number for number, _ in views}) == 32 == ranks[0].coverage.num_used
    # hardly any two views of a sample are augmented alike
    assert len(noises) > 90
    assert "shows 32 of 103 images in 3 augmented views" in ranks[0].coverage.text()


def test_small_classes_are_shown_again_in_other_views(folder):
    source = source_of(folder, streaming=False)
    labels = [0 if number < 90 else 1 for number in range(NUM_TRAIN)]
    (loader,) = loaders(source, labels=labels)
    batches = seen(loader.epoch(0))
    ids = [number for batch in batches for number in batch[0]]
    assert abs(sum(labels[number] for number in ids) - len(ids) / 2) <= 3
    shown = [
        (number, pixels[1]) for numbers, _, images in batches for number, pixels in zip(numbers, images, strict=True)
    ]
    assert len(set(shown)) == len(shown)
    assert "of each class equally many: it shows at most 64 of 103 different images" in loader.coverage.text()
    assert seen(loader.epoch(0, 4)) == batches[4:]


def test_coverage_says_what_is_left_out_and_what_would_be_faster(folder):
    (indexed,) = loaders(source_of(folder, streaming=False))
    assert indexed.coverage.text() == (
        "an epoch is 17 updates of 6 images and shows 102 of 103 images once; the remainder of 1 is dropped, others "
        "in each epoch."
    )
    assert "svit-hf data shard" not in loaders(source_of(folder, streaming=True), num_ranges=5)[0].coverage.text()
    text = loaders(source_of(folder, streaming=True), world_size=2, num_ranges=6)[0].coverage.text()
    assert "6 workers over all ranks share 5 shards" in text
    assert "svit-hf data shard" in text


def test_too_few_images_for_a_step_are_refused(folder):
    with pytest.raises(SViTError, match=r"103 images are too few .* need 120"):
        loaders(source_of(folder, streaming=True), world_size=2, batch_size=20, micro_batches=6)


def test_micro_batches_that_ranks_cannot_divide_are_refused(folder):
    source = source_of(folder, streaming=True)
    with pytest.raises(SViTError, match="3 micro-batches, which 2 ranks cannot divide"):
        loaders(source, world_size=2, micro_batches=3)
    with pytest.raises(SViTError, match="`num_ranges` is 3; it has to be a multiple of 2"):
        loaders(source, micro_batches=2, num_ranges=3)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_any_number_of_ranks_sees_the_same_micro_batches(folder, streaming, num_views):
    source = source_of(folder, streaming)
    common = {"micro_batches": 4, "num_ranges": 8, "num_views": num_views, "batch_size": 3}
    (alone,) = loaders(source, **common)
    whole = seen(alone.epoch(1))
    assert len(whole) == 4 * alone.updates_per_epoch
    for world_size in (2, 4):
        ranks = [seen(loader.epoch(1)) for loader in loaders(source, world_size=world_size, **common)]
        each = 4 // world_size
        updates = [
            batch
            for u in range(alone.updates_per_epoch)
            for rank in ranks
            for batch in rank[u * each : (u + 1) * each]
        ]
        assert updates == whole
        # from the middle of the epoch on, with other workers
        half = alone.updates_per_epoch // 2
        (loader, *_) = loaders(source, world_size=world_size, num_workers=2, **common)
        assert seen(loader.epoch(1, half * each)) == ranks[0][half * each :]


def test_step_beyond_the_epoch_is_refused(folder):
    with pytest.raises(SViTError, match="`start_step` is 18; an epoch has 17 steps"):
        loaders(source_of(folder, streaming=True))[0].epoch(0, 18)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_counts_every_image_once(folder, streaming, world_size, num_workers):
    source = source_of(folder, streaming, "eval")
    ranks = [
        EvaluationLoader(source, noisy_red, batch_size=7, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    parts = [[number for batch in loader for number in batch["sample_ids"].tolist()] for loader in ranks]
    assert sorted(number for part in parts for number in part) == list(range(NUM_TEST))
    assert {loader.num_samples for loader in ranks} == {NUM_TEST}
    assert max(map(len, parts)) - min(map(len, parts)) <= 7
    whole = [tuple(batch["sample_ids"].tolist()) for batch in EvaluationLoader(source, noisy_red, batch_size=7)]
    # the same batches, whoever makes them
    assert sorted(tuple(batch["sample_ids"].tolist()) for loader in ranks for batch in loader) == whole


@pytest.fixture
def broken_folder(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(12), rows_per_group=4, broken=(2, 3, 11))
    write_parquet(tmp_path / "test.parquet", range(4), broken=range(4))
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_next_good_image_takes_the_place_of_a_broken_one(broken_folder, streaming, num_workers):
    (loader,) = loaders(source_of(broken_folder, streaming), batch_size=6, num_workers=num_workers)
    (whole,) = loaders(source_of(broken_folder, streaming), batch_size=12)
    bad = []
    for batch in loader.epoch(0):
        assert batch["pixel_values"].shape == (6, 3, 1, 1)
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["sample_ids"].tolist()
        bad += batch["bad_images"]
    assert {image.sample_id for image in bad} == {2, 3, 11}
    assert all(image.reason for image in bad)
    if streaming:
        assert {(image.source, image.row) for image in bad} == {
            ("train.parquet, row group 0", 2),
            ("train.parquet, row group 0", 3),
            ("train.parquet, row group 2", 3),
        }
    (batch,) = whole.epoch(0)
    assert len(batch["labels"]) == 12
    assert set(batch["sample_ids"].tolist()) == set(range(12)) - {2, 3, 11}


def test_batch_of_nothing_but_broken_images(broken_folder):
    source = source_of(broken_folder, True, "eval")
    (batch,) = EvaluationLoader(source, noisy_red, batch_size=4)
    assert len(batch["labels"]) == len(batch["pixel_values"]) == 0
    assert len(batch["bad_images"]) == 4
    (loader,) = loaders(source, batch_size=4)
    with pytest.raises(DataError, match="all 4 images of a batch are broken"):
        next(loader.epoch(0))


@pytest.mark.parametrize(
    ("num_cpus", "num_local_ranks", "wanted", "expected"),
    [(6, None, None, 6), (6, 4, None, 1), (2, 4, None, 1), (64, 2, None, 8), (64, 2, 12, 12), (6, None, 0, 0)],
)
def test_ranks_of_a_machine_share_its_cpus(monkeypatch, num_cpus, num_local_ranks, wanted, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(num_cpus)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if num_local_ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local_ranks))
    assert workers_per_rank(DataOptions(num_workers=wanted)) == expected


def end_this_process(image, key):
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_an_error_that_says_what_to_do(folder):
    loader = EvaluationLoader(source_of(folder, True, "eval"), end_this_process, batch_size=4, num_workers=1)
    with pytest.raises(DataError, match=r"ended from outside.* lower `data\.num_workers`"):
        list(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_in_a_worker_is_the_one_that_it_would_be_without(tmp_path, num_workers):
    write_parquet(tmp_path / "test.parquet", range(8), names=(), label=[0, 1, 0, None, 1, 0, 1, 0])
    write_parquet(tmp_path / "train.parquet", range(8), names=(), label=[0, 1] * 4)
    index = tmp_path / "index.json"
    SourceIndex(("0", "1"), {"test": {"test.parquet": (8,)}}).write(index)
    source = open_source(DataOptions(str(tmp_path), streaming=True, index=str(index)), "eval")
    with pytest.raises(DataError) as caught:
        list(EvaluationLoader(source, noisy_red, batch_size=2, num_workers=num_workers))
    assert str(caught.value).startswith("the label in row 3 of test.parquet is None, which is none of the 2 classes")


def test_process_ends_though_its_workers_do_not(folder, fresh_python):
    code = f"""
import time
from svit_hf.data.loading import EvaluationLoader
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions

def stall(image, key):
    time.sleep(1000)

source = open_source(DataOptions({str(folder)!r}, streaming=True), "eval")
# nobody closes the iterator, and its workers ignore SIGTERM
batches = iter(EvaluationLoader(source, stall, batch_size=4, num_workers=2))
import threading
threading.Thread(target=lambda: next(batches), daemon=True).start()
time.sleep(2)
print("ended", flush=True)
"""
    assert "ended" in fresh_python("-c", code)
