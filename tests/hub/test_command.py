# SPDX-License-Identifier: Apache-2.0
import json
import re
import shlex
from pathlib import Path

import pytest
from hub.hub_stand_in import Fault
from huggingface_hub import ModelCard, constants

from svit_hf import cli
from svit_hf.errors import SViTError
from svit_hf.hub.command import read_card_text


REPO = "someone/svit-pets"
GUIDE = Path(__file__).parents[2] / "docs/guides/publish.md"
CARD = {
    "summary": "A summary.",
    "data": "Some data.",
    "command": "svit-hf convert svit_small.pth svit-small-224",
    "settings": {},
    "evaluations": [
        {
            "dataset_name": "Pets",
            "dataset_id": "pets/five",
            "split": "test",
            "num_images": 8,
            "metrics": {"accuracy": 0.75},
            "task_id": "default",
        }
    ],
    "limits": "Limits.",
    "provenance": "From somewhere.",
    "licence": "unknown",
}


@pytest.fixture
def default_hub(hub, monkeypatch):
    """Make the stand-in the Hub of everybody, and log in."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "a token")
    return hub


def push(*arguments):
    return cli.main(["push", *map(str, arguments)])


def test_first_comes_a_look(default_hub, run_folder, capsys):
    (run_folder / "model/optimizer.pt").write_bytes(b"momentum")
    assert push(run_folder, REPO) == 0
    assert default_hub.requests == []
    shown = capsys.readouterr().out
    assert "# svit-five" in shown
    assert f'model="{REPO}"' in shown
    assert re.search(r"^model\.safetensors +127,[0-9]{3} bytes$", shown, re.MULTILINE)
    assert "left out: optimizer.pt (a pickle" in shown
    assert f"it would go to {default_hub.endpoint}/{REPO}, branch main (private if new)" in shown
    assert "Add --no-dry-run to push it." in shown


def test_then_the_push(default_hub, run_folder, capsys):
    assert push(run_folder, REPO, "--no-dry-run", "--no-private", "--message", "Good pets") == 0
    repository = default_hub.repositories[REPO]
    assert repository.titles() == ["Good pets", "initial commit"]
    assert not repository.is_private
    assert f"pushed and read back: {default_hub.endpoint}/{REPO} (public)" in capsys.readouterr().out


def test_failed_push_is_status_5_and_says_what_to_do(default_hub, run_folder, capsys):
    default_hub.faults = [Fault("POST .*/commit/", 403)]
    assert push(run_folder, REPO, "--no-dry-run") == 5
    told = capsys.readouterr().err
    assert f"svit-hf: nothing was committed to {REPO}" in told
    assert "The same command may be given again" in told
    assert "Traceback" not in told


def test_folder_that_is_not_fit_is_status_2(default_hub, tmp_path, capsys):
    assert push(tmp_path, REPO, "--no-dry-run") == 2
    assert "it has to be a model" in capsys.readouterr().err


def test_offline_is_no_wait(default_hub, run_folder, capsys, monkeypatch, waits):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(run_folder, REPO, "--no-dry-run") == 5
    assert waits == []
    assert "offline mode" in capsys.readouterr().err


def test_card_comes_from_a_file(default_hub, model_folder, tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    assert push(model_folder, REPO, "--card", tmp_path / "card.json", "--no-dry-run") == 0
    contents = default_hub.repositories[REPO].contents()
    card = ModelCard(contents["README.md"].decode())
    assert card.data.model_name == "svit-pets"
    assert card.data.eval_results[0].metric_value == 0.75
    assert b"0.75" in contents[".eval_results/pets--five.yaml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sumary": "typo"}, r"unexpected keyword argument 'sumary'.* Its fields are summary, data"),
        ({"location": "elsewhere"}, "multiple values for keyword argument 'location'"),
        ({"evaluations": [{"split": "test"}]}, "'dataset_name', 'dataset_id', 'num_images', and 'metrics'"),
        ({"evaluations": [1]}, "must be a mapping, not int"),
        ({"evaluations": 1}, "'int' object is not iterable"),
    ],
)
def test_card_file_has_to_hold_the_fields_of_a_card(tmp_path, change, message):
    (tmp_path / "card.json").write_text(json.dumps(CARD | change))
    with pytest.raises(SViTError, match=message):
        read_card_text(tmp_path / "card.json", REPO)


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{", "is no card"), ("[]", "'list'")])
def test_card_file_has_to_be_json(tmp_path, content, message):
    if content is not None:
        (tmp_path / "card.json").write_text(content)
    with pytest.raises(SViTError, match=message):
        read_card_text(tmp_path / "card.json", REPO)


def test_commands_of_the_guide_run(default_hub, run_folder, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run_folder.rename("runs/pets")
    model_folder.rename("svit-small-224")
    text = GUIDE.read_text()
    (tmp_path / "card.json").write_text(re.search(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1])
    commands = [
        shlex.split(line, comments=True)
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert len(commands) > 3
    for program, *arguments in commands:
        assert program in ("svit-hf", "hf")
        if program == "svit-hf":
            assert cli.main(arguments) == 0
    assert default_hub.repositories
