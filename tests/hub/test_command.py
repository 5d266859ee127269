# SPDX-License-Identifier: Apache-2.0
import re
import shlex
from pathlib import Path

import pytest
from hub.hub_stand_in import Fault
from huggingface_hub import constants

from svit_hf import cli


REPO = "someone/svit-pets"
GUIDE = Path(__file__).parents[2] / "docs/guides/publish.md"


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
    shown = capsys.readouterr().out
    assert f"pushed and read back: {default_hub.endpoint}/{REPO} (public)" in shown
    assert shown.splitlines()[-1].split() == ["svit-hf", "doctor", REPO]


def test_failed_push_is_status_5_and_says_what_to_do(default_hub, run_folder, capsys):
    default_hub.faults = [Fault("POST .*/commit/", 403)]
    assert push(run_folder, REPO, "--no-dry-run") == 5
    told = capsys.readouterr().err
    assert f"svit-hf: the push to {REPO} failed" in told
    assert "The same command may be given again" in told
    assert "Traceback" not in told


def test_offline_is_no_wait(default_hub, run_folder, capsys, monkeypatch, waits):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(run_folder, REPO, "--no-dry-run") == 5
    assert waits == []
    assert "offline mode" in capsys.readouterr().err


def test_commands_of_the_guide_run(default_hub, run_folder, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run_folder.rename("runs/pets")
    model_folder.rename("svit-small-224")
    text = GUIDE.read_text()
    (tmp_path / "svit-small-224/README.md").write_text(re.search(r"^```markdown\n(.*?)^```", text, re.S | re.M)[1])
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
