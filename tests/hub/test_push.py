# SPDX-License-Identifier: Apache-2.0
"""What `push_folder` puts on the Hub: over HTTP, on a stand-in."""

import pytest
import torch
from huggingface_hub import ModelCard

from svit_hf.errors import SViTError
from svit_hf.hub.push import push_folder
from svit_hf.hub.remote_code import code_files


REPO = "someone/svit-pets"


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in folder.rglob("*")}


def test_one_commit_holds_the_model_its_code_and_its_card_and_nothing_here_changes(hub, api, run_folder, report):
    before, random_state = snapshot(run_folder), torch.get_rng_state()
    pushed = push_folder(run_folder, REPO, api=api)
    assert snapshot(run_folder) == before
    # training may go on
    assert torch.equal(torch.get_rng_state(), random_state)
    repository = hub.repositories[REPO]
    assert hub.num_requests("POST .*/commit/main") == 1
    assert repository.titles() == [f"Push {REPO}", "initial commit"]
    contents = repository.contents()
    assert contents.keys() == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "probe.safetensors",
        *(path.name for path in code_files()),
    }
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert contents[name] == (run_folder / "model" / name).read_bytes()
    assert (pushed.commit, pushed.is_new) == (repository.head(), True)
    assert pushed.is_private is repository.is_private is True
    assert f"read back: {hub.endpoint}/{REPO} (private), branch main, commit {pushed.commit}" in pushed.text()
    card = ModelCard(contents["README.md"].decode())
    assert f'model="{REPO}"' in card.text
    assert str(run_folder) not in str(card)
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "accuracy": report["metrics"]["ema"]["accuracy"],
        "top-5 accuracy": 1.0,
    }


def test_what_is_not_fit_is_refused_before_anything_is_sent(hub, api, run_folder):
    for repo_id in ("pets", "a/b/c", "some one/pets", ""):
        with pytest.raises(SViTError, match="`repo_id` is"):
            push_folder(run_folder, repo_id, api=api)
    (run_folder / "model/model.safetensors").unlink()
    with pytest.raises(SViTError, match=r"there is no .*model\.safetensors"):
        push_folder(run_folder, REPO, api=api)
    assert hub.requests == []
