# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import json
import shlex

import pytest

from svit_hf.errors import SViTError
from svit_hf.hub.run_card import card_text_of_run


def test_card_says_what_the_report_says(report):
    text = card_text_of_run(report)
    assert text.name == "svit-five"
    assert text.location == "."
    assert "trained from random weights on 800 images of 5 classes from `pets/five`" in text.summary
    assert "moving average (EMA)" in text.summary
    assert text.command == "svit-hf train --recipe finetune"
    assert text.recipe == report["recipe"]
    assert text.versions == report["versions"]
    assert text.settings["epochs completed"] == 7
    assert text.settings["updates"] == 350
    assert text.settings["commit of svit-hf"] == "0123abc"
    assert "trained on 800 images of the split train" in text.data
    assert "evaluated on 200 images of the split test" in text.data
    assert "5 classes: cat, dog, emu, fox, gnu" in text.data
    assert "could not be read and were skipped: 3" in text.data


def test_chosen_weights_are_evaluated_and_the_others_compared(report):
    text = card_text_of_run(report)
    (ema,), (raw,) = text.evaluations, text.comparisons
    assert (ema.weights, raw.weights) == ("EMA", "raw")
    assert ema.metrics == {"accuracy": report["metrics"]["ema"]["accuracy"], "top5_accuracy": 1.0}
    assert raw.metrics["accuracy"] == report["metrics"]["raw"]["accuracy"]
    # the broken image does not count
    assert ema.num_images == raw.num_images == 199

    report["chosen"] = "raw"
    text = card_text_of_run(report)
    assert [evaluation.weights for evaluation in text.evaluations] == ["raw"]
    assert "as they were trained (raw)" in text.summary


def test_limits_say_what_the_numbers_do_not(report):
    limits = card_text_of_run(report).limits
    assert "also decided on the checkpoint and between raw weights and their moving average" in limits
    assert "the 95 % interval is 0.7706 to 0.8751" in limits
    del report["metrics"]["raw"], report["metrics"]["ema"]["accuracy_interval"]
    limits = card_text_of_run(report).limits
    assert "also decided on the checkpoint; on others" in limits
    assert "interval" not in limits


def test_licence_is_unknown_unless_stated(report):
    unknown = card_text_of_run(report)
    assert unknown.licence == "unknown"
    assert "No licence is stated for these weights." in unknown.provenance
    stated = card_text_of_run(report, licence="mit")
    assert stated.licence == "mit"
    assert "states the licence mit" in stated.provenance


def test_origin_of_the_weights_is_told(report):
    assert "started from random weights" in card_text_of_run(report).provenance
    report["recipe"]["model"]["name_or_path"] = "svit-small-224"
    text = card_text_of_run(report)
    assert "fine-tuned from `svit-small-224`" in text.summary
    assert "started from the weights `svit-small-224`. Their licence is not recorded" in text.provenance
    assert text.licence == "unknown"
    report["recipe"]["distillation"]["teacher"] = "some/teacher"
    assert (
        "beside the labels, it learnt from the answers of another model, `some/teacher`"
        in card_text_of_run(report).data
    )


def test_teacher_is_told_with_its_weights(report):
    report["recipe"]["distillation"] = {"teacher": "some/teacher", "kind": "features", "weight": 1.0}
    report["teacher"] = {"sha256": "0123abcd", "revision": "main1234"}
    assert (
        "- it learnt from the features of another model, `some/teacher`, revision main1234, "
        "SHA-256 of its weights 0123abcd"
    ) in card_text_of_run(report).data


@pytest.mark.parametrize(
    ("path", "format", "dataset_id", "task_id", "name"),
    [
        ("pets/five", "hub", "pets/five", "default", "five"),
        # a folder may be called so, too
        ("pets/five", "auto", "five", None, "five"),
        ("hf://datasets/pets/five@v1/data/*.parquet", "auto", "pets/five", "default", "five"),
        ("images/five/*.parquet", "parquet", "five", None, "five"),
        ("hub-like", "hub", "hub-like", None, "hub-like"),
    ],
)
def test_data_set_is_called_one_of_the_hub_only_if_that_is_certain(report, path, format, dataset_id, task_id, name):
    report["data"]["path"] = path
    report["recipe"]["data"]["format"] = format
    (evaluation,) = card_text_of_run(report).evaluations
    assert (evaluation.dataset_id, evaluation.task_id, evaluation.dataset_name) == (dataset_id, task_id, name)


def test_run_without_evaluation_has_no_numbers(report):
    report["metrics"] = {}
    report["data"] |= {"eval_split": None, "num_eval": 0}
    text = card_text_of_run(report)
    assert not text.evaluations
    assert not text.comparisons
    assert "It was not evaluated." in text.limits
    assert "None" not in text.data


@pytest.mark.parametrize(
    "keys",
    [("recipe",), ("recipe", "model"), ("data", "num_train"), ("chosen",), ("versions",), ("metrics",)],
    ids=".".join,
)
def test_incomplete_report_is_refused(report, keys):
    broken = copy.deepcopy(report)
    holder = broken
    for key in keys[:-1]:
        holder = holder[key]
    del holder[keys[-1]]
    with pytest.raises(SViTError, match=f"`report` is not that of a training run: KeyError: '{keys[-1]}'"):
        card_text_of_run(broken)


def test_choice_without_numbers_is_refused(report):
    del report["metrics"]["ema"]
    with pytest.raises(SViTError, match="'ema' weights were chosen, and has metrics of"):
        card_text_of_run(report)


def test_card_tells_nothing_of_this_machine(report, tmp_path):
    folder = str(tmp_path / "pets five")
    report["data"] |= {"path": folder, "description": f"{folder}, split train, indexed, 800 images, 5 classes"}
    report["recipe"]["data"]["path"] = folder
    report["recipe"]["model"]["name_or_path"] = "~/models/svit-small"
    report["recipe"]["distillation"]["teacher"] = "../secret/teacher"
    report["recipe"]["data"]["index"] = "C:\\Users\\someone\\index.json"
    report["command"] = shlex.join(["svit-hf", "train", "--data.path", folder, f"--output-dir={folder}/runs/"])
    text = card_text_of_run(report)
    everything = json.dumps(dataclasses.asdict(text))
    for part in (str(tmp_path), "~/", "secret", "someone"):
        assert part not in everything
    assert text.command == "svit-hf train --data.path 'pets five' --output-dir=runs"
    assert "from `pets five`" in text.summary
    assert text.data.startswith("pets five, split train, indexed, 800 images, 5 classes.")
    assert text.recipe["data"]["index"] == "index.json"
    assert text.recipe["distillation"]["teacher"] == "teacher"
    # the report itself keeps them
    assert report["data"]["path"] == folder


def test_credentials_are_hidden(report):
    address = "https://user:hunter2@host/pets.parquet?X-Amz-Signature=0123abcd&part=2"
    report["data"] |= {"path": address, "description": f"{address}, split train, 800 images"}
    report["recipe"]["data"]["path"] = address
    report["command"] = shlex.join(["svit-hf", "train", f"--data.path={address}"])
    text = card_text_of_run(report)
    everything = json.dumps(dataclasses.asdict(text))
    assert "hunter2" not in everything
    assert "0123abcd" not in everything
    assert "https://***@host/pets.parquet?X-Amz-Signature=***&part=2" in text.recipe["data"]["path"]


def test_names_from_the_data_are_escaped(report):
    report["data"]["label_names"] = ["<script>", "a\n# heading", "b|c", "/m/0cat"]
    report["data"]["eval_split"] = "<b>"
    text = card_text_of_run(report)
    assert r"4 classes: &lt;script&gt;, a # heading, b\|c, /m/0cat" in text.data
    assert "of the split &lt;b&gt;" in text.data
