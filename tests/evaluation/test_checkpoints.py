# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import (
    class_names,
    find_model,
    find_weights,
    load_and_compare,
    load_classifier,
    load_image_processor,
)


@pytest.fixture
def run_dir(tmp_path):
    """Make a folder of a run with raw and averaged weights, without the weights."""
    for name in ("best/raw", "best/ema", "checkpoints/step-00000001/raw", "model"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").touch()
    return tmp_path / "run"


def test_folder_and_id_are_themselves(run_dir):
    assert find_weights(str(run_dir / "model")) == {"model": str(run_dir / "model")}
    assert find_weights("someone/svit") == {"model": "someone/svit"}
    assert find_model("someone/svit") == "someone/svit"


def test_run_has_the_weights_of_its_best(run_dir):
    best = {name: str(run_dir / "best" / name) for name in ("raw", "ema")}
    assert find_weights(str(run_dir)) == best
    assert find_weights(str(run_dir / "best")) == best
    assert find_weights(str(run_dir), "ema") == {"ema": best["ema"]}


def test_checkpoint_has_its_own(run_dir):
    checkpoint = run_dir / "checkpoints" / "step-00000001"
    assert find_weights(str(checkpoint)) == {"raw": str(checkpoint / "raw")}
    with pytest.raises(SViTError, match=r"`weights` is 'ema', but .* has only raw"):
        find_weights(str(checkpoint), "ema")


def test_one_model_of_a_run_is_the_finished_one(run_dir):
    assert find_model(str(run_dir)) == str(run_dir / "model")
    assert find_model(str(run_dir), "raw") == str(run_dir / "best" / "raw")
    assert find_model(str(run_dir / "checkpoints" / "step-00000001")).endswith("raw")
    with pytest.raises(SViTError, match="has raw and ema weights; `weights` says which"):
        find_model(str(run_dir / "best"))


@pytest.mark.parametrize("find", [find_weights, find_model])
def test_folder_without_weights_is_refused(tmp_path, find):
    with pytest.raises(SViTError, match=r"`model` is .*, a folder with neither a config\.json"):
        find(str(tmp_path))


def test_classifier_is_loaded_in_float32_and_eval_mode(tmp_path):
    SViTForImageClassification(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), "cpu")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("location", ["someone/svit", "./nowhere/at/all"])
def test_model_that_is_nowhere_is_refused(location):
    with pytest.raises(SViTError, match="cannot be loaded as a classifier"):
        load_classifier(location, "cpu")
    with pytest.raises(SViTError, match="image processor cannot be loaded"):
        load_image_processor(location)


def test_weights_that_are_not_there_are_named(tmp_path):
    model = SViTForImageClassification(tiny_config())
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier.")}
    model.save_pretrained(tmp_path, state_dict={**weights, "other.weight": torch.ones(1)})
    _, differences = load_and_compare(str(tmp_path))
    assert differences == {"missing": ["classifier.bias", "classifier.weight"], "unexpected": ["other.weight"]}
    with pytest.raises(SViTError, match=r"lacks 2 of the model, such as classifier\.bias, classifier\.weight"):
        load_classifier(str(tmp_path), "cpu")


def test_class_names_are_in_the_order_of_their_numbers():
    names = {2: "c", 0: "a", 1: "b"}
    assert class_names(SViTForImageClassification(tiny_config(num_labels=3, id2label=names))) == ["a", "b", "c"]
