# SPDX-License-Identifier: Apache-2.0
"""Pushes beside a training run: the newest wins, nothing is lost, and failures are seen."""

import shutil
import threading

import pytest

import svit_hf.hub.push
from svit_hf.errors import PushError, SViTError
from svit_hf.hub.model_card import card_text_of_run
from svit_hf.hub.push import BackgroundPush, PushReport


REPO = "someone/svit-pets"
SECONDS = 20


class SlowPush:
    """Stand-in for `push_folder` that notes what it is given, and ends when it may."""

    def __init__(self):
        self.pushed = []
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, folder, repo_id, *, message, **arguments):
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        self.pushed.append((message, (folder / "model.safetensors").read_text()))
        if "broken" in message:
            # whatever it is
            raise RuntimeError("the Hub said no")
        return PushReport(repo_id, "main", "url", None, is_private=True, commit="commit", is_new=True)


@pytest.fixture
def slow_push(monkeypatch):
    slow = SlowPush()
    monkeypatch.setattr(svit_hf.hub.push, "push_folder", slow)
    return slow


@pytest.fixture
def best(tmp_path):
    """Return a function that replaces the best model, as training does: by a new folder."""

    def replace(content):
        folder = tmp_path / "best"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
        return folder

    return replace


def test_newest_of_those_that_wait_is_pushed(slow_push, best, tmp_path):
    log = []
    push = BackgroundPush(REPO, tmp_path, log=log.append)
    push.submit(best("first"), title="epoch 1")
    assert slow_push.has_begun.wait(SECONDS)
    for epoch, content in ((2, "second"), (3, "third"), (4, "fourth")):
        push.submit(best(content), title=f"epoch {epoch}")
    shutil.rmtree(tmp_path / "best")
    slow_push.may_end.set()
    push.close()
    assert slow_push.pushed == [("Push epoch 1", "first"), ("Push epoch 4", "fourth")]
    assert log == [
        f"epoch 2 is not pushed to {REPO}: epoch 3 is newer",
        f"epoch 3 is not pushed to {REPO}: epoch 4 is newer",
        "epoch 1 is pushed to url, commit commit",
        "epoch 4 is pushed to url, commit commit",
    ]
    assert not list(tmp_path.iterdir())


def test_copies_share_the_disk(slow_push, best, tmp_path):
    push = BackgroundPush(REPO, tmp_path)
    folder = best("content")
    push.submit(folder)
    assert (folder / "model.safetensors").stat().st_nlink == 2
    slow_push.may_end.set()
    push.close()
    assert (folder / "model.safetensors").stat().st_nlink == 1


def test_what_an_earlier_process_left_is_removed_and_nothing_else(slow_push, best, tmp_path):
    (tmp_path / ".push-7").mkdir()
    (tmp_path / "checkpoints").mkdir()
    slow_push.may_end.set()
    with BackgroundPush(REPO, tmp_path) as push:
        push.submit(best("content"))
    assert {path.name for path in tmp_path.iterdir()} == {"best", "checkpoints"}


def test_failure_is_logged_at_once_and_raised_at_the_end(slow_push, best, tmp_path):
    log = []
    slow_push.may_end.set()
    push = BackgroundPush(REPO, tmp_path, log=log.append)
    push.submit(best("content"), title="a broken one")
    with pytest.raises(
        PushError, match=r"1 pushes to .* failed.*\n.*a broken one was not pushed: the Hub said no"
    ) as end:
        push.close()
    assert log == push.problems == ["a broken one was not pushed: the Hub said no"]
    assert end.value.exit_code == 5


def test_failure_of_a_push_does_not_hide_another_error(slow_push, best, tmp_path):
    slow_push.may_end.set()
    push = BackgroundPush(REPO, tmp_path, log=[].append)

    def train():
        with push:
            push.submit(best("content"), title="a broken one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert len(push.problems) == 1


def test_missing_folder_is_named(tmp_path):
    push = BackgroundPush(REPO, tmp_path)
    with pytest.raises(SViTError, match=r"`folder` is '.*gone', which cannot be copied"):
        push.submit(tmp_path / "gone")
    push.close()


def test_name_is_checked_at_once(tmp_path):
    with pytest.raises(SViTError, match="`repo_id` is 'pets'"):
        BackgroundPush("pets", tmp_path)


def test_checkpoint_without_code_and_card_is_published_whole(hub, api, model_folder, report, tmp_path):
    for path in model_folder.glob("*.py"):
        path.unlink()
    with BackgroundPush(REPO, tmp_path, api=api, log=[].append) as push:
        push.submit(model_folder, card_text_of_run(report), "epoch 7")
        shutil.rmtree(model_folder)
    contents = hub.repositories[REPO].contents()
    assert hub.repositories[REPO].titles() == ["Push epoch 7", "initial commit"]
    assert f'model="{REPO}"' in contents["README.md"].decode()
    assert {"model.safetensors", "modeling_svit.py"} <= contents.keys()
