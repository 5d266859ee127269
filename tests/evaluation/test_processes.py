# SPDX-License-Identifier: Apache-2.0
"""Evaluation and prediction by two real processes."""

import json

import pyarrow.parquet as pq
import pytest
from evaluation_data import NUM_IMAGES, logits_of, make_classifier, write_parquet
from rank_launch import run_ranks
from rank_programs import run_commands

from svit_hf import cli


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_count_every_image_once(tmp_path, capsys):
    model = make_classifier(tmp_path / "model")
    write_parquet(tmp_path / "data" / "test.parquet", broken=[7])
    data, out = tmp_path / "data", tmp_path / "out"
    common = [tmp_path / "model", "--data.num-workers", "0", "--batch-size", "8"]
    printed = run_ranks(
        run_commands,
        tmp_path / "output.txt",
        *(
            ["evaluate", *common, "--data.path", data, "--data.streaming", streaming, "--output", out / f"{name}.json"]
            for name, streaming in (("map", "False"), ("stream", "True"))
        ),
        ["predict", *common, data, "--part-size", "10", "--output", out / "parts"],
    )

    # rank 0 alone speaks: for the map, the stream and the prediction
    assert printed.count("2 processes") == 2
    assert printed.count("101 images, 1 of them broken, in 11 files") == 1
    alone = tmp_path / "alone.json"
    assert cli.main(["evaluate", str(tmp_path / "model"), "--data.path", str(data), "--output", str(alone)]) == 0
    expected = json.loads(alone.read_text())["results"]["model"]
    for name in ("map", "stream"):
        content = json.loads((out / f"{name}.json").read_text())
        result = content["results"]["model"]
        assert content["num_processes"] == 2
        assert result["num_images"] + result["num_broken"] == NUM_IMAGES
        assert result["num_broken"] == 1
        for key in ("num_images", "num_hits", "accuracy", "top5_accuracy", "classes"):
            assert result[key] == expected[key]
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    files = sorted((out / "parts").glob("part-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["sample_id"] for row in rows] == list(range(NUM_IMAGES))
    answers = logits_of(model).argmax(dim=1).tolist()
    found = [row["top_ids"] and row["top_ids"][0] for row in rows]
    assert found == [None if number == 7 else answer for number, answer in enumerate(answers)]
