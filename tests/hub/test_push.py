# SPDX-License-Identifier: Apache-2.0
"""What `push_folder` puts on the Hub: over HTTP, on a stand-in."""

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from svit_hf.errors import SViTError
from svit_hf.hub.push import push_folder
from svit_hf.hub.remote_code import code_files


REPO = "someone/svit-pets"


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in folder.rglob("*")}


def test_one_commit_holds_the_model_its_code_and_its_card(hub, api, run_folder):
    report = push_folder(run_folder, REPO, api=api)
    repository = hub.repositories[REPO]
    assert hub.num_requests("POST .*/commit/main") == 1
    assert repository.titles() == [f"Push {REPO}", "initial commit"]
    contents = repository.contents()
    assert contents.keys() == {
        ".gitattributes",
        ".eval_results/pets--five.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "probe.safetensors",
        *(path.name for path in code_files()),
    }
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert contents[name] == (run_folder / "model" / name).read_bytes()
    assert (report.commit, report.is_new) == (repository.head(), True)
    assert report.is_private is repository.is_private is True
    assert (
        f"pushed and read back: {hub.endpoint}/{REPO} (private), branch main, commit {report.commit}" in report.text()
    )


def test_card_on_the_hub_tells_the_run_and_where_it_is(hub, api, run_folder, report):
    push_folder(run_folder, REPO, api=api)
    contents = hub.repositories[REPO].contents()
    card = ModelCard(contents["README.md"].decode())
    assert f'model="{REPO}"' in card.text
    assert str(run_folder) not in str(card)
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "accuracy": report["metrics"]["ema"]["accuracy"],
        "top-5 accuracy": 1.0,
    }
    (entry,) = parse_eval_result_entries(yaml.safe_load(contents[".eval_results/pets--five.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "pets/five",
        "default",
        card.data.eval_results[0].metric_value,
    )


def test_nothing_here_changes_and_training_may_go_on(hub, api, run_folder):
    before, random_state = snapshot(run_folder), torch.get_rng_state()
    push_folder(run_folder, REPO, api=api)
    assert snapshot(run_folder) == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_what_is_not_fit_is_refused_before_anything_is_sent(hub, api, run_folder):
    (run_folder / "model/model.safetensors").unlink()
    with pytest.raises(SViTError, match=r"there is no .*model\.safetensors"):
        push_folder(run_folder, REPO, api=api)
    assert hub.requests == []


def test_branch_message_and_visibility_are_given(hub, api, run_folder):
    push_folder(run_folder, REPO, revision="v2", private=False, message="Better", api=api)
    repository = hub.repositories[REPO]
    assert repository.titles() == ["initial commit"]
    assert repository.titles("v2") == ["Better", "initial commit"]
    assert not repository.is_private


@pytest.mark.parametrize("repo_id", ["pets", "a/b/c", "some one/pets", ""])
def test_impossible_names_are_refused(api, run_folder, repo_id):
    with pytest.raises(SViTError, match="`repo_id` is"):
        push_folder(run_folder, repo_id, api=api)
