# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import fields, replace

import pytest
from huggingface_hub import ModelCard
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.hub.model_card import CardText, Evaluation, build_model_card


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
    assert "| Some Images | test | 123 | accuracy | 0.8750 |" in card.text
    assert "| Some Images | test | 123 | top-5 accuracy | 1.0000 |" in card.text


def test_card_describes_the_model(model):
    card = build_model_card(model, TEXT)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters and 5 classes" in card.text
    assert "| super_token_sizes | [4, 2, 1, 1] |" in card.text
    assert "| torch |" in card.text


def test_card_leaves_no_placeholder(model):
    assert not re.search(r"\$\{?[a-z_]+", build_model_card(model, TEXT).text)


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
    data = build_model_card(model, replace(TEXT, evaluations=[])).data.to_dict()
    assert "model-index" not in data
    assert "metrics" not in data
