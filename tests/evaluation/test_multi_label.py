# SPDX-License-Identifier: Apache-2.0
"""Any number of labels per image: numbers against scikit-learn's, over processes, and from data to pipeline."""

import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_data import picture
from recipe_changes import changed
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from transformers import pipeline

from svit_hf import cli
from svit_hf.data.loading import EvaluationLoader
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.shards import ShardOptions, write_shards
from svit_hf.errors import DataError, EvaluationError, SViTError
from svit_hf.evaluation import evaluate_model, predict_images
from svit_hf.evaluation.multi_label import evaluate_multi_label
from svit_hf.evaluation.outputs import Ranks
from svit_hf.recipes import RECIPES
from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.train import train


NAMES = ["bright", "odd", "rare"]


def labels_of(number):
    return [index for index, is_there in enumerate((number >= 30, number % 2, number % 16 == 0)) if is_there]


def write(file, numbers, labels=labels_of, names=NAMES):
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=list(names)))}
    )
    images = [{"bytes": picture(number * 4), "path": None} for number in numbers]
    columns = {"image": images, "labels": [labels(number) for number in numbers]}
    pq.write_table(pa.table(columns, schema=features.arrow_schema), file, row_group_size=20)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.parquet", range(60))
    write(folder / "test.parquet", range(5, 55))
    return folder


class Scores(nn.Module):
    """Logits that are the first three numbers of an image."""

    def forward(self, pixel_values):
        return pixel_values[:, :3, 0, 0]


def batches_of(logits, targets, ids, size=7):
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield {"pixel_values": logits[part][:, :, None, None], "labels": targets[part], "sample_ids": part}


def test_numbers_are_those_of_scikit_learn_and_do_not_depend_on_processes():
    logits, targets = torch.randn(50, 3), (torch.rand(50, 3) < 0.4).float()
    targets[:, 2] = 0
    whole = evaluate_multi_label(
        Scores(), batches_of(logits, targets, torch.arange(50)), Ranks(), num_expected=50, num_classes=3
    )
    probabilities = logits.sigmoid().numpy()
    present = [average_precision_score(targets[:, i], probabilities[:, i]) for i in range(2)]
    assert whole.mean_average_precision == pytest.approx(np.mean(present))
    # the third label is on no image
    assert whole.classes[2] == (0, None, None)
    predicted = probabilities >= 0.5
    assert whole.micro_f1 == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert whole.macro_f1 == pytest.approx(f1_score(targets, predicted, average=None)[:2].mean())
    expected = nn.functional.binary_cross_entropy_with_logits(logits.double(), targets.double(), reduction="none")
    assert whole.loss == pytest.approx(expected.sum(1).mean().item())
    # two processes, in another order and with other batches: the sum of their messages is the message of both
    messages = []
    for ids, size in ((torch.arange(49, 20, -1), 4), (torch.arange(21), 11)):
        with pytest.raises(EvaluationError, match="were counted"):
            evaluate_multi_label(
                Scores(),
                batches_of(logits, targets, ids, size),
                Ranks(reduce=lambda message: messages.append(message) or message),
                num_expected=50,
                num_classes=3,
            )
    both = Ranks(reduce=lambda message: messages[0] + messages[1])
    shared = evaluate_multi_label(Scores(), [], both, num_expected=50, num_classes=3)
    for name in ("mean_average_precision", "micro_f1", "macro_f1", "loss", "classes"):
        assert getattr(shared, name) == getattr(whole, name)


def test_outputs_that_are_not_finite_are_counted():
    logits, targets = torch.randn(8, 3), torch.ones(8, 3)
    logits[2, 1] = float("nan")
    batches = batches_of(logits, targets, torch.arange(8))
    report = evaluate_multi_label(Scores(), batches, Ranks(), num_expected=8, num_classes=3)
    assert report.num_not_finite == 1
    assert report.to_json()["loss"] is None
    assert "output not finite" in report.table()


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_labels_are_lists(folder, streaming):
    source = open_source(DataOptions(str(folder), multi_label=True, streaming=streaming), "train")
    assert source.label_names == tuple(NAMES)
    loader = EvaluationLoader(source, lambda image, key: torch.tensor([float(key.sample_id)]), batch_size=16)
    labels = torch.cat([batch["labels"] for batch in loader])
    assert labels.dtype == torch.float32
    assert [row.nonzero()[:, 0].tolist() for row in labels] == [labels_of(number) for number in range(60)]


def test_what_is_no_list_is_refused(folder, tmp_path):
    with pytest.raises(SViTError, match=r"`label_column` is none of image, labels for sure"):
        open_source(DataOptions(str(folder)), "train")
    with pytest.raises(SViTError, match=r"a class is a string or an integer.*`multi_label` allows any number"):
        open_source(DataOptions(str(folder), label_column="labels"), "train")
    write(folder / "test.parquet", range(3), labels=lambda number: [0, 7])
    with pytest.raises(DataError, match=r"row 0 of test\.parquet is 7"):
        open_source(DataOptions(str(folder), multi_label=True), "eval")


def test_folders_of_classes_have_one_label(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(picture(40))
    with pytest.raises(SViTError, match=r"`multi_label` is True, but .* has a folder for each class.*one; `metadata"):
        open_source(DataOptions(str(tmp_path), multi_label=True), "train")


def test_strings_and_other_orders_are_matched_by_name(folder):
    write(folder / "test.parquet", range(6), names=NAMES[::-1])
    source = open_source(DataOptions(str(folder), multi_label=True), "eval")
    assert source.label_names == tuple(NAMES)
    # in this file, 2 stands for bright and 1 for odd
    assert [row.label for row in source.rows(0, 0, 2)] == [(0,), (1,)]


def test_shards_keep_lists(folder, tmp_path):
    write_shards(DataOptions(str(folder), multi_label=True), tmp_path / "out", ShardOptions())
    source = open_source(DataOptions(str(tmp_path / "out"), multi_label=True), "train")
    found = sorted(row.label for row in source.rows(0, 0, 60))
    assert found == sorted(tuple(labels_of(number)) for number in range(60))


def recipe_for(folder, **fields):
    return changed(
        RECIPES["smoke"](),
        data__path=str(folder),
        data__multi_label=True,
        data__num_workers=0,
        optimization__loss="binary_cross_entropy",
        optimization__batch_size=20,
        optimization__device_batch_size=20,
        optimization__epochs=2,
        run__save_every_updates=2,
        run__keep_checkpoints=9,
        **fields,
    )


def test_from_data_to_pipeline(folder, tmp_path, capsys):
    recipe = recipe_for(folder)
    report = train(recipe, tmp_path / "run")
    metrics = report["metrics"][report["chosen"]]
    assert 0 < metrics["mean_average_precision"] <= 1
    assert "mAP" in capsys.readouterr().err
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"{metrics['mean_average_precision']:.4f}" in card
    assert "any number of them" in card
    # the same numbers from the folder, to the last digit
    options = DataOptions(str(folder), multi_label=True)
    found = evaluate_model(tmp_path / "run", options, batch_size=20, num_workers=0).report
    assert found.mean_average_precision == metrics["mean_average_precision"]
    assert found.loss == metrics["loss"]
    # and by the command
    arguments = ["--data.path", str(folder), "--data.multi-label", "--output", str(tmp_path / "found.json")]
    assert cli.main(["evaluate", str(tmp_path / "run" / "model"), *arguments]) == 0
    assert "mean average precision" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())
    # probabilities that need not sum to 1
    (tmp_path / "picture.png").write_bytes(picture(200))
    (row,) = predict_images(tmp_path / "run", [str(tmp_path / "picture.png")]).rows()
    answers = pipeline("image-classification", model=str(tmp_path / "run" / "model"))(str(tmp_path / "picture.png"))
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert scores == pytest.approx(dict(zip(row["top_labels"], row["top_scores"], strict=True)), abs=1e-5)
    assert abs(sum(scores.values()) - 1) > 1e-3


def test_a_run_goes_on_exactly(folder, tmp_path):
    recipe = recipe_for(folder, mixing__mixup_alpha=0.8)
    train(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for checkpoint in checkpoints_of(tmp_path / "part")[1:]:
        shutil.rmtree(checkpoint)
    train(recipe, tmp_path / "part")
    weights = [
        load_file(checkpoints_of(tmp_path / run)[-1] / "raw" / "model.safetensors") for run in ("whole", "part")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "optimization.loss"),
        ({"optimization__loss": "binary_cross_entropy", "optimization__class_weights": "balanced"}, "class_weights"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, tmp_path, changes, name):
    recipe = changed(
        RECIPES["smoke"](), data__path=str(folder), data__multi_label=True, data__num_workers=0, **changes
    )
    recipe = changed(recipe, optimization__batch_size=20)
    with pytest.raises(SViTError, match=rf"`.*{name}` is .*; with `data.multi_label` it has to be"):
        train(recipe, tmp_path / "run")
