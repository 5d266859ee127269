# SPDX-License-Identifier: Apache-2.0
"""A data set of the Hub, by its id and over HTTP, from a stand-in on this machine."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.hub_repositories import Repository, StoredFile
from hub.hub_stand_in import hub_stand_in
from picture_data import encoded, picture, write_parquet
from PIL import Image


READ = """
import json, sys
from svit_hf.data.augmentation import TrainingTransform
from svit_hf.data.loading import EvaluationLoader, TrainingLoader
from svit_hf.data.options import AugmentationOptions, DataOptions
from svit_hf.data.opening import open_source
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.semantic_segmentation import SemanticSegmentation

plain = AugmentationOptions(randaugment="", color_jitter=0, random_erasing=0)
transform = TrainingTransform((8, 8), (0.5,) * 3, (0.5,) * 3, plain)
found = {}
for streaming in (True, False):
    options = DataOptions("someone/pets", streaming=streaming, shuffle_block=4)
    source = open_source(options, "train")
    held_out = EvaluationLoader(open_source(options, "eval"), transform, batch_size=4)
    training = TrainingLoader(source, transform, batch_size=3, num_workers=2, seed=1, shuffle_block=4)
    found[str(streaming)] = {
        "description": source.description,
        "names": source.label_names,
        "shards": len(source.shard_sizes),
        "training": sorted(i for batch in training.epoch(0) for i in batch["sample_ids"].tolist()),
        "held_out": sorted(i for batch in held_out for i in batch["sample_ids"].tolist()),
    }
    cells = find_split(SemanticSegmentation, DataOptions("someone/cells", streaming=streaming), "train")
    source = cells.source(SemanticSegmentation(["nothing", "cell"], 64))
    training = TrainingLoader(source, source.task.training_example, batch_size=3, num_workers=2, shuffle_block=4)
    batches = list(training.epoch(0))
    found[str(streaming)]["cells"] = sorted(i for batch in batches for i in batch["sample_ids"].tolist())
    found[str(streaming)]["classes"] = sorted({int(i) for batch in batches for i in batch["labels"].unique()})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_streamed_and_indexed_by_its_id(fresh_python, tmp_path):
    files = {}
    for split, num_images in (("train", 12), ("test", 5)):
        write_parquet(tmp_path / f"{split}.parquet", range(num_images), rows_per_group=4)
        files[f"data/{split}-00000-of-00001.parquet"] = StoredFile((tmp_path / f"{split}.parquet").read_bytes(), True)
    mask = encoded(Image.new("L", (12, 10), 1))
    rows = [
        {column: {"bytes": data, "path": None} for column, data in (("image", picture(n)), ("mask", mask))}
        for n in range(6)
    ]
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    pq.write_table(
        pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "cells.parquet", row_group_size=2
    )
    with hub_stand_in() as hub:
        cells = Repository(is_private=False)
        content = StoredFile((tmp_path / "cells.parquet").read_bytes(), True)
        cells.commit("main", {"data/train-00000-of-00001.parquet": content}, "Add cells")
        hub.repositories["datasets/someone/cells"] = cells
        repository = Repository(is_private=False)
        repository.commit("main", files, "Add images")
        hub.repositories["datasets/someone/pets"] = repository
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "a token",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "cache"),
        }
        found = json.loads(fresh_python("-c", READ, environment=environment).splitlines()[-1])
    for streaming, what in (("True", "streamed from 3 shards"), ("False", "indexed")):
        assert what in found[streaming]["description"]
        assert found[streaming]["training"] == list(range(12))
        assert found[streaming]["held_out"] == list(range(5))
        assert found[streaming]["cells"] == list(range(6))
        assert found[streaming]["classes"] == [1]
    assert found["True"]["names"] == found["False"]["names"]
    assert found["True"]["shards"] == 3
