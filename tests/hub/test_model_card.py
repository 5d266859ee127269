# SPDX-License-Identifier: Apache-2.0
import json
import re
from dataclasses import fields, replace

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.hub.model_card import (
    CardText,
    Evaluation,
    build_model_card,
    escaped,
    eval_result_files,
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


def test_results_of_data_sets_on_the_hub_have_the_newer_form():
    on_hub = replace(TEXT.evaluations[0], task_id="some_task")
    (path, content), *others = eval_result_files([on_hub, *TEXT.evaluations]).items()
    assert path == ".eval_results/some--images.yaml"
    assert others == []
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("some/images", "some_task", 0.875)
    assert entry.notes == "top-1 accuracy, split test, 123 images"


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
