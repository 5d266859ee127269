# SPDX-License-Identifier: Apache-2.0
"""Images in four colours, and the recipe of a model that learns them in seconds."""

import io
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hub.hub_stand_in import hub_stand_in
from huggingface_hub import HfApi, constants
from PIL import Image

from svit_hf.data.options import AugmentationOptions, MixingOptions
from svit_hf.hub import push
from svit_hf.recipes import RECIPES
from svit_hf.training import loop, run_log


LAYOUT = {
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "super_token_sizes": [2, 2, 1, 1],
    "projection_dim": 32,
    "drop_path_rate": 0.1,
}
NUM_TRAIN, NUM_TEST = 163, 101


def write_images(path, num_images, row_group_size):
    """Write a parquet file of images whose brightness is their label."""
    generator = np.random.default_rng(num_images)

    def examples():
        for index in range(num_images):
            label = index % 4
            pixels = (generator.random((24, 24, 3)) * 60 + label * 60).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield {"image": {"bytes": file.getvalue(), "path": None}, "label": label}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
    data = datasets.Dataset.from_list(list(examples()), features=features)
    data.to_parquet(str(path), batch_size=row_group_size)


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory):
    """Return a folder of parquet files: five row groups to train on, 101 images to evaluate."""
    folder = tmp_path_factory.mktemp("toy")
    write_images(folder / "train.parquet", NUM_TRAIN, 33)
    write_images(folder / "test.parquet", NUM_TEST, 60)
    return folder


@pytest.fixture(scope="session")
def toy_recipe(toy_images):
    """Return a recipe of ten updates an epoch, read in this process."""
    recipe = RECIPES["smoke"]()
    return replace(
        recipe,
        model=replace(recipe.model, config=LAYOUT),
        data=replace(recipe.data, path=str(toy_images), num_workers=0),
        # everything random that there is
        augmentation=AugmentationOptions(scale=(0.5, 1.0)),
        mixing=MixingOptions(),
        optimization=replace(recipe.optimization, batch_size=16, device_batch_size=16, epochs=1, warmup_epochs=0),
        run=replace(recipe.run, log_every_updates=2),
    )


@pytest.fixture
def no_curves(monkeypatch):
    """Draw nothing, which would take as long as a tiny model trains."""
    monkeypatch.setattr(run_log, "draw_curves", lambda rows: SimpleNamespace(savefig=lambda path, **_: path.touch()))


@pytest.fixture
def hub(monkeypatch):
    """Return a stand-in of the Hub, to which runs push."""
    # constants that huggingface_hub takes from the environment when it is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub_stand_in() as stand_in:
        monkeypatch.setattr(push, "HfApi", partial(HfApi, endpoint=stand_in.endpoint, token="a token"))
        yield stand_in


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that gives runs SIGTERM when they begin an update, or none any more."""
    train_one_update = loop.Run._train_one_update

    def stop(update):
        def stop_and_train(self, batches):
            if self.progress.update == update:
                signal.raise_signal(signal.SIGTERM)
            train_one_update(self, batches)

        monkeypatch.setattr(loop.Run, "_train_one_update", stop_and_train)

    return stop
