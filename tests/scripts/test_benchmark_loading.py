# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from picture_data import picture, write_parquet
from scripts.benchmark import loading
from scripts.benchmark.loading import measure_loading, photographs, pick_images

from svit_hf.data.augmentation import TrainingTransform
from svit_hf.data.opening import open_source
from svit_hf.data.options import AugmentationOptions, DataOptions
from svit_hf.data.sources import Row


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_no_more_images_are_read_than_needed_and_none_that_is_broken(tmp_path, monkeypatch, streaming):
    numbers = range(30)
    write_parquet(tmp_path / "train.parquet", numbers, rows_per_group=7, broken=(1, 4))
    source = open_source(DataOptions(str(tmp_path), streaming=streaming), "train")
    read = []
    monkeypatch.setattr("svit_hf.data.sources.Row", lambda *values: read.append(values) or Row(*values))
    images = pick_images(source, 6)
    assert 6 <= len(read) <= 8
    whole = [picture(number) for number in numbers if number not in (1, 4)]
    assert len(images) == len(set(images)) == 6
    assert set(images) <= set(whole)
    assert set(pick_images(source, 100)) == set(whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_pipeline_is_measured_in_every_round(num_workers):
    options = {"image_size": 16, "batch_size": 2, "num_workers": num_workers, "repeats": 2}
    measured = measure_loading(photographs(9), AugmentationOptions(), **options)
    assert list(measured) == ["torchvision", "svit-hf", "decoding alone"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in measured.values())


def test_first_batch_and_the_end_of_workers_do_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])

    def batches():
        for seconds in (100, 100, 1, 2, 1, 2):
            clock[0] += seconds
            yield None
        clock[0] += 100

    assert loading._seconds_per_batch(batches(), 2) == 2 * 6 / 4


def test_peer_draws_from_the_global_generator_alone():
    transform = TrainingTransform((16, 12), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), AugmentationOptions(random_erasing=1))
    images = loading._InMemory(photographs(1), loading._torchvision_transform(transform))
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(images[0])
    assert made[0].shape == (3, 16, 12)
    assert made[0].dtype == torch.float32
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize(("name", "changes"), [("crop and flip", False), ("crop, flip, RandAugment, erasing", True)])
def test_peer_does_what_the_augmentation_says(name, changes):
    transform = TrainingTransform((8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), loading.AUGMENTATIONS[name])
    # a plain colour, which crop and flip leave as it is
    images = loading._InMemory([picture(7)] * 20, loading._torchvision_transform(transform))
    colours = torch.cat([images[index].flatten(1) for index in range(20)], dim=1).unique(dim=1)
    assert (colours.shape[1] > 1) == changes
