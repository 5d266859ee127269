# SPDX-License-Identifier: Apache-2.0
import copy
import json
import re
import shlex
from dataclasses import asdict, fields, replace

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.errors import SViTError
from svit_hf.hub.model_card import (
    CardText,
    Evaluation,
    build_model_card,
    card_text_of_run,
    escaped,
    with_location,
)


TEXT = CardText(
    name="svit-test",
    location="somewhere/svit-test",
    summary="A summary that is only here.",
    data="Data that are only here.",
    command="svit-hf train --only-here",
    settings={"epochs": 17},
    evaluations=[Evaluation("Some Images", "some/images", "test", 123, {"accuracy": 0.875, "top5_accuracy": 1.0})],
    limits="Limits that are only here.",
    provenance="Provenance that is only here.",
    licence="cc-by-4.0",
    tags=["only-here"],
)


@pytest.fixture(scope="module")
def model():
    return SViTForImageClassification(tiny_config())


def test_card_says_all_it_was_told(model):
    card = build_model_card(model, TEXT)
    for field in fields(TEXT):
        value = getattr(TEXT, field.name)
        if isinstance(value, str):
            assert value in str(card), field.name
    assert "| epochs | 17 |" in card.text
    assert "| Some Images | test | these | 123 | accuracy | 0.8750 |" in card.text
    assert "| Some Images | test | these | 123 | top-5 accuracy | 1.0000 |" in card.text


def test_card_describes_the_model(model):
    card = build_model_card(model, TEXT)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters and 5 classes" in card.text
    assert "| super_token_sizes | [4, 2, 1, 1] |" in card.text
    assert "| torch |" in card.text


def test_metadata_survive_the_file(model, tmp_path):
    build_model_card(model, TEXT).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert data.license == "cc-by-4.0"
    assert data.tags == ["svit", "vision", "only-here"]
    assert data.metrics == ["accuracy"]
    results = [
        (r.dataset_type, r.dataset_split, r.metric_name, r.metric_type, r.metric_value) for r in data.eval_results
    ]
    assert results == [
        ("some/images", "test", "accuracy", "accuracy", 0.875),
        ("some/images", "test", "top-5 accuracy", "accuracy", 1.0),
    ]
    assert data.model_name == "svit-test"


def test_card_without_evaluation_has_no_model_index(model):
    card = build_model_card(model, replace(TEXT, evaluations=[]))
    assert "It was not evaluated." in card.text
    assert "model-index" not in card.data.to_dict()
    assert "metrics" not in card.data.to_dict()


def test_other_weights_are_compared_in_the_text_alone(model):
    raw = Evaluation("Some Images", "some/images", "test", 123, {"accuracy": 0.5}, weights="raw")
    card = build_model_card(model, replace(TEXT, comparisons=[raw]))
    assert "| Some Images | test | raw | 123 | accuracy | 0.5000 |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [0.875, 1.0]


def test_recipe_and_versions_are_those_of_the_run(model):
    card = build_model_card(model, replace(TEXT, recipe={"seed": 11}, versions={"torch": "1.2.3"}))
    assert json.loads(re.search(r"^```json\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)[1]) == {"seed": 11}
    assert "| torch | 1.2.3 |" in card.text
    assert "| transformers |" not in card.text


def test_use_names_the_place_and_can_be_moved(model):
    card = str(build_model_card(model, TEXT))
    assert 'model="somewhere/svit-test", trust_remote_code=True)' in card
    moved = with_location(card, "else/where")
    assert moved == card.replace("somewhere/svit-test", "else/where") != card
    assert "`svit-hf doctor else/where`" in moved


def test_text_from_outside_is_shown_and_does_nothing(model):
    hostile = "cat\n# heading | <script>alert(1)</script> ![x](http://host/x.png) *b* `c` _d_ e_f"
    shown = r"cat # heading \| &lt;script&gt;alert(1)&lt;/script&gt; !\[x\](http://host/x.png) \*b\* \`c\` \_d\_ e_f"
    assert escaped(hostile) == shown
    evaluation = replace(TEXT.evaluations[0], dataset_name=hostile, split=hostile)
    text = replace(TEXT, name=hostile, evaluations=[evaluation], settings={"device": hostile})
    card = build_model_card(model, replace(text, command="svit-hf train '```\n# heading'"))
    body = card.text
    assert f"# {shown}\n" in body
    assert f"| {shown} | {shown} | these | 123 | accuracy | 0.8750 |" in body
    assert f"| device | {shown} |" in body
    assert "````bash\nsvit-hf train '```\n# heading'\n````" in body
    assert ModelCard(str(card)).data.eval_results[0].dataset_name == hostile


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
    ("path", "format", "dataset_id", "name"),
    [
        ("pets/five", "hub", "pets/five", "five"),
        # a folder may be called so, too
        ("pets/five", "auto", "five", "five"),
        ("hf://datasets/pets/five@v1/data/*.parquet", "auto", "pets/five", "five"),
        ("images/five/*.parquet", "parquet", "five", "five"),
        ("hub-like", "hub", "hub-like", "hub-like"),
    ],
)
def test_data_set_is_called_one_of_the_hub_only_if_that_is_certain(report, path, format, dataset_id, name):
    report["data"]["path"] = path
    report["recipe"]["data"]["format"] = format
    (evaluation,) = card_text_of_run(report).evaluations
    assert (evaluation.dataset_id, evaluation.dataset_name) == (dataset_id, name)


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
    everything = json.dumps(asdict(text))
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
    everything = json.dumps(asdict(text))
    assert "hunter2" not in everything
    assert "0123abcd" not in everything
    assert "https://***@host/pets.parquet?X-Amz-Signature=***&part=2" in text.recipe["data"]["path"]


def test_names_from_the_data_are_escaped(report):
    report["data"]["label_names"] = ["<script>", "a\n# heading", "b|c", "/m/0cat"]
    report["data"]["eval_split"] = "<b>"
    text = card_text_of_run(report)
    assert r"4 classes: &lt;script&gt;, a # heading, b\|c, /m/0cat" in text.data
    assert "of the split &lt;b&gt;" in text.data
