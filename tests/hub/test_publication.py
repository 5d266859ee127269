# SPDX-License-Identifier: Apache-2.0
"""What is published of a folder, and what is refused before anything is sent."""

import json

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from svit_hf import SViTForImageClassification, SViTModel
from svit_hf.errors import SViTError
from svit_hf.hub.model_card import CardText
from svit_hf.hub.probe import PROBE_FILE, compare_with_probe
from svit_hf.hub.publication import prepare_publication
from svit_hf.hub.remote_code import code_files


REPO = "someone/svit-pets"
# shaped like one, and none
TOKEN = "hf_" + "aB3" * 11
CARD = CardText(
    name="svit-pets",
    location=REPO,
    summary="A summary.",
    data="Some data.",
    command="svit-hf convert",
    settings={},
    evaluations=[],
    limits="Limits.",
    provenance="From somewhere.",
)


def contents(publication):
    return {file.path_in_repo: file.path_or_fileobj for file in publication.files}


def names(publication):
    return contents(publication).keys()


def test_only_what_belongs_to_a_model_is_published(run_folder):
    model = run_folder / "model"
    published = names(prepare_publication(run_folder, REPO))
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pkl", "pytorch_model.bin", "old.pth"):
        (model / name).write_bytes(b"\x80\x04N.")
    for name in ("token", ".env", "log.jsonl", "model.safetensors.part"):
        (model / name).write_text(TOKEN)
    (model / "checkpoints").mkdir()
    publication = prepare_publication(run_folder, REPO)
    assert names(publication) == published
    pickles = {name for name, reason in publication.left_out.items() if "pickle" in reason}
    assert pickles == {"training_args.bin", "optimizer.pt", "scheduler.pkl", "pytorch_model.bin", "old.pth"}
    assert publication.left_out.keys() - pickles == {
        "token",
        ".env",
        "log.jsonl",
        "model.safetensors.part",
        "checkpoints/",
    }


@pytest.mark.parametrize("name", ["README.md", "config.json", "configuration_svit.py", "LICENSE"])
def test_secret_in_a_file_is_refused_and_not_repeated(run_folder, name):
    path = run_folder / "model" / name
    text = path.read_text() if path.exists() else ""
    is_json = name.endswith(".json")
    path.write_text(json.dumps(json.loads(text) | {"note": TOKEN}) if is_json else f"{text}\n# {TOKEN}\n")
    with pytest.raises(SViTError, match=rf"line \d+ of {name} holds what looks like an access token") as failure:
        prepare_publication(run_folder, REPO)
    assert TOKEN not in str(failure.value)


def test_token_in_the_metadata_of_the_weights_is_refused(run_folder):
    weights = run_folder / "model/model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "note": TOKEN})
    with pytest.raises(SViTError, match=r"model\.safetensors holds what looks like an access token"):
        prepare_publication(run_folder, REPO)


def test_token_in_the_command_of_the_run_is_hidden(run_folder, report):
    (run_folder / "model/README.md").unlink()
    (run_folder / "report.json").write_text(json.dumps(report | {"command": f"HF_TOKEN={TOKEN} svit-hf train"}))
    card = prepare_publication(run_folder, REPO).card
    assert TOKEN not in card
    assert "'HF_TOKEN=***' svit-hf train" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("classifier.bias"), r"missing: classifier\.bias"),
        (lambda tensors: tensors.update(extra=tensors["classifier.bias"].clone()), "unknown: extra"),
        (
            lambda tensors: tensors.update({"classifier.bias": tensors["classifier.bias"][:3].clone()}),
            r"of another shape: classifier\.bias",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_have_to_be_those_of_the_config(run_folder, change, message):
    weights = run_folder / "model/model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(SViTError, match=message):
        prepare_publication(run_folder, REPO)


def test_broken_weights_are_refused(run_folder):
    weights = run_folder / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SViTError, match=r"model\.safetensors' cannot be read"):
        prepare_publication(run_folder, REPO)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "holds a list"),
        ("preprocessor_config.json", '{"auto_map": 1}', "has no `auto_map` for AutoImageProcessor"),
        ("config.json", '{"model_type": "vit"}', "is of 'vit'"),
        ("config.json", '{"model_type": "svit", "hidden_sizes": "wide"}', "cannot be loaded"),
        ("preprocessor_config.json", "{", "has no image processor that loads"),
        ("preprocessor_config.json", None, "has no image processor that loads"),
        ("configuration_svit.py", None, "code is missing in"),
        ("modeling_svit.py", None, "code is missing in"),
        ("README.md", "---\nlicense: [\n---\n", r"README\.md cannot be read"),
        ("README.md", "# no metadata\n", "states no `license`"),
    ],
)
def test_broken_files_are_refused(run_folder, name, content, message):
    path = run_folder / "model" / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(SViTError, match=message):
        prepare_publication(run_folder, REPO)


def test_only_classifiers_are_published(model_folder):
    model = SViTModel.from_pretrained(model_folder)
    model.save_pretrained(model_folder)
    with pytest.raises(SViTError, match="architectures \\['SViTModel'\\]"):
        prepare_publication(model_folder, REPO)


def test_config_without_its_code_is_refused(run_folder):
    path = run_folder / "model/config.json"
    content = json.loads(path.read_text())
    del content["auto_map"]["AutoModelForImageClassification"]
    path.write_text(json.dumps(content))
    with pytest.raises(SViTError, match="has no `auto_map` for AutoModelForImageClassification"):
        prepare_publication(run_folder, REPO)


@pytest.mark.parametrize("wrong", ["0.99", "0.8291"])
def test_numbers_in_the_metadata_are_those_of_the_report(run_folder, wrong):
    path = run_folder / "model/README.md"
    path.write_text(path.read_text().replace("value: 0.8291457286432161", f"value: {wrong}"))
    with pytest.raises(SViTError, match=rf"give {wrong} as accuracy on five, the report of the run 0\.8291457"):
        prepare_publication(run_folder, REPO)


def test_numbers_in_the_text_are_those_of_the_report(run_folder):
    path = run_folder / "model/README.md"
    path.write_text(path.read_text().replace("| 0.8141 |", "| 0.9141 |"))
    with pytest.raises(SViTError, match=r"says '.* 0\.9141 \|', the report of the run '.* 0\.8141 \|'"):
        prepare_publication(run_folder, REPO)


def test_what_was_written_into_the_card_stays(run_folder):
    path = run_folder / "model/README.md"
    path.write_text(path.read_text() + "\nIt confuses emus with gnus.\n")
    assert prepare_publication(run_folder, REPO).card.endswith("\nIt confuses emus with gnus.\n")


def test_card_is_made_of_the_report(run_folder):
    (run_folder / "model/README.md").unlink()
    card = ModelCard(prepare_publication(run_folder, REPO, licence="mit").card)
    assert card.data.license == "mit"
    assert card.data.model_name == "svit-pets"
    assert f'model="{REPO}"' in card.text
    assert "27,245 parameters and 5 classes" in card.text


def test_licence_of_a_card_that_is_there_is_not_changed(run_folder):
    with pytest.raises(SViTError, match="`licence` is 'mit', but the card is not made here"):
        prepare_publication(run_folder, REPO, licence="mit")


def test_model_without_a_card_needs_one(model_folder):
    with pytest.raises(SViTError, match=r"has no README\.md, and no report of a run to make one of"):
        prepare_publication(model_folder, REPO)
    publication = prepare_publication(model_folder, REPO, CARD)
    assert "A summary." in publication.card


def test_model_without_code_gets_that_of_the_package(model_folder):
    whole = contents(prepare_publication(model_folder, REPO, CARD))
    for path in model_folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((model_folder / name).read_text())
        del content["auto_map"]
        (model_folder / name).write_text(json.dumps(content))
    completed = {
        file.path_in_repo: file.path_or_fileobj for file in prepare_publication(model_folder, REPO, CARD).files
    }
    assert {path.name for path in code_files()} <= completed.keys()
    assert completed == whole


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_other_folders_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SViTError, match=rf"`folder` is '.*{name}'; it has to be a model"):
        prepare_publication(tmp_path / name, REPO)


@pytest.mark.parametrize(("content", "message"), [("[]", "holds a list"), ("{", "is not JSON"), ("{}", "KeyError")])
def test_report_has_to_be_one(run_folder, content, message):
    (run_folder / "report.json").write_text(content)
    with pytest.raises(SViTError, match=message):
        prepare_publication(run_folder, REPO)


def test_model_without_a_probe_gets_one(model_folder, tmp_path):
    (model_folder / PROBE_FILE).unlink(missing_ok=True)
    before = sorted(model_folder.iterdir())
    assert PROBE_FILE not in names(prepare_publication(model_folder, REPO, CARD, add_probe=False))
    (tmp_path / PROBE_FILE).write_bytes(contents(prepare_publication(model_folder, REPO, CARD))[PROBE_FILE])
    model = SViTForImageClassification.from_pretrained(model_folder)
    assert compare_with_probe(model, tmp_path) == 0
    assert sorted(model_folder.iterdir()) == before
    # one that is there is published as it is
    (model_folder / PROBE_FILE).write_bytes(b"mine")
    assert contents(prepare_publication(model_folder, REPO, CARD))[PROBE_FILE] == b"mine"
