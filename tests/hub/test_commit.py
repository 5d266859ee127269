# SPDX-License-Identifier: Apache-2.0
"""Commits over HTTP, to a stand-in of the Hub that fails in every way it can."""

import pytest
from hub.hub_repositories import StoredFile
from hub.hub_stand_in import Fault
from huggingface_hub import CommitOperationAdd, HfApi

import svit_hf.hub.push
from svit_hf.errors import PushError
from svit_hf.hub.publication import Publication
from svit_hf.hub.push import push_folder


REPO = "someone/some-model"
REQUESTS = {
    "make repository": "POST /api/repos/create",
    "read head": "GET .*/revision/",
    "check card": "POST /api/validate-yaml",
    "choose upload": "POST .*/preupload/",
    "offer upload": r"POST .*\.git/info/lfs/objects/batch",
    "upload": "PUT /_lfs/",
    "commit": "POST .*/commit/",
}
FOREVER = 1000

of_every_request = pytest.mark.parametrize("request_pattern", REQUESTS.values(), ids=REQUESTS)


def files_with(weights=b"weights", **others):
    contents = {"model.safetensors": weights, "README.md": b"---\nlicense: mit\n---\n", "config.json": b"{}"} | others
    return [CommitOperationAdd(path, content) for path, content in contents.items()]


@pytest.fixture
def push(api, monkeypatch):
    """Return a function that pushes files, whatever they are."""

    def run(files=None, revision=None, api=api):
        publication = Publication(tuple(files or files_with()), {}, "")
        monkeypatch.setattr(svit_hf.hub.push, "prepare_publication", lambda *arguments: publication)
        return push_folder("a folder", REPO, revision=revision, message="A model", api=api)

    return run


def committed(hub, revision="main"):
    """Return what a revision holds, without what the Hub itself put there."""
    contents = hub.repositories[REPO].contents(revision)
    del contents[".gitattributes"]
    return contents


@of_every_request
def test_refusal_leaves_nothing_behind_and_says_why(hub, push, waits, request_pattern):
    hub.faults = [Fault(request_pattern, 403, times=FOREVER)]
    with pytest.raises(
        PushError, match=r"the push to someone/some-model failed: .*403: injected fault.*right to write"
    ):
        push()
    assert waits == []
    assert all(repository.titles() == ["initial commit"] for repository in hub.repositories.values())


@of_every_request
def test_trouble_is_told_and_the_push_can_be_made_again(hub, push, waits, request_pattern):
    hub.faults = [Fault(request_pattern, 503, times=FOREVER)]
    with pytest.raises(PushError, match=r"the push to someone/some-model failed: .* was answered with 503"):
        push()
    hub.faults = []
    assert push().is_new
    assert hub.repositories[REPO].titles() == ["A model", "initial commit"]


def test_commit_whose_answer_is_lost_is_not_made_again(hub, push):
    hub.faults = [Fault(REQUESTS["commit"], None, is_done=True)]
    with pytest.raises(PushError, match="the push to someone/some-model failed: RemoteProtocolError"):
        push()
    again = push()
    assert (again.commit, again.is_new) == (hub.repositories[REPO].head(), False)
    assert hub.repositories[REPO].titles() == ["A model", "initial commit"]


def test_commit_of_somebody_else_is_not_overwritten(hub, api, push, monkeypatch):
    create_commit = api.create_commit

    def create_commit_second(*arguments, **keywords):
        hub.repositories[REPO].commit("main", {"other.txt": StoredFile(b"")}, "Somebody else")
        return create_commit(*arguments, **keywords)

    monkeypatch.setattr(api, "create_commit", create_commit_second)
    with pytest.raises(PushError, match=r"was answered with 412: .*Somebody else committed to the branch meanwhile"):
        push()
    assert hub.repositories[REPO].titles() == ["Somebody else", "initial commit"]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_file_that_reads_back_differently_fails(hub, push, path):
    hub.tampered = {path}
    with pytest.raises(PushError, match=rf"commit \w+ of .* holds something else than was sent: {path} differs"):
        push()


def test_missing_file_fails(hub, api, push, monkeypatch):
    create_commit = api.create_commit

    def lose_file(repo_id, operations, **keywords):
        operations = [operation for operation in operations if operation.path_in_repo != "config.json"]
        return create_commit(repo_id, operations, **keywords)

    monkeypatch.setattr(api, "create_commit", lose_file)
    with pytest.raises(PushError, match=r"holds something else than was sent: config\.json is missing"):
        push()


def test_commit_that_cannot_be_read_back_is_named(hub, push, waits):
    hub.faults = [Fault("GET .*/tree/", 500, times=FOREVER)]
    with pytest.raises(
        PushError, match=r"commit \w+ of someone/some-model was made, but not verified: .*500"
    ) as failure:
        push()
    assert hub.repositories[REPO].head() in str(failure.value)


def test_without_a_token_the_remedy_is_named(hub, push):
    with pytest.raises(PushError, match="hf auth login"):
        push(api=HfApi(endpoint=hub.endpoint, token=False))
    assert hub.repositories == {}


def test_nothing_listens_there(hub, push):
    with pytest.raises(PushError, match="the push to someone/some-model failed: ConnectError"):
        push(api=HfApi(endpoint="http://127.0.0.1:9", token="a token"))


def test_same_files_make_no_second_commit(hub, push):
    first = push()
    second = push()
    assert (second.commit, second.is_new) == (first.commit, False)
    assert hub.repositories[REPO].titles() == ["A model", "initial commit"]


def test_branch_is_made_from_main(hub, push):
    push()
    commit = push(files_with(weights=b"better"), revision="epoch-7")
    assert committed(hub)["model.safetensors"] == b"weights"
    assert committed(hub, "epoch-7")["model.safetensors"] == b"better"
    assert hub.repositories[REPO].titles("epoch-7") == ["A model", "A model", "initial commit"]
    assert commit.commit == hub.repositories[REPO].head("epoch-7")


def test_visibility_of_a_repository_that_exists_stays(hub, api, push):
    api.create_repo(REPO, private=False)
    assert not push().is_private
    assert not hub.repositories[REPO].is_private
