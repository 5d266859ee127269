# SPDX-License-Identifier: Apache-2.0
"""One commit that holds all files: sent until it is there, there at most once, and read back.

The commit names the one that it builds on, so that the Hub refuses a second one of the same kind. Where the answer of
the Hub got lost, the head of the branch tells whether the commit arrived.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from svit_hf.errors import PushError
from svit_hf.hub.folder_checks import WEIGHTS
from svit_hf.hub.publication import PublishedFile
from svit_hf.hub.retries import HUB_ERRORS, reason, retry


EVAL_RESULTS = ".eval_results/*"


class VerifiedCommit(NamedTuple):
    """Hold what is on the Hub after a push.

    Attributes:
        oid: The commit whose files are the published ones.
        is_new: Whether this push made it; it makes none if nothing has changed.
        is_private: Whether the repository is private.
        deleted: Results of earlier weights that it took away.
    """

    oid: str
    is_new: bool
    is_private: bool
    deleted: tuple[str, ...]


def make_repository(api: HfApi, repo_id: str, revision: str, private: bool) -> ModelInfo:
    """Make a repository and a branch if they are not there.

    Returns:
        What the Hub says about the branch.

    Raises:
        PushError: If it cannot be done.
    """
    try:
        retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        try:
            return _info(api, repo_id, revision)
        except RevisionNotFoundError:
            retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
            return _info(api, repo_id, revision)
    except HUB_ERRORS as error:
        raise _nothing_committed(repo_id, error) from error


def commit_files(
    api: HfApi, repo_id: str, revision: str, files: Sequence[PublishedFile], *, private: bool, message: str
) -> VerifiedCommit:
    """Commit files to a branch, and read them back.

    Args:
        api: The Hub.
        repo_id: The repository; made if it is not there.
        revision: The branch; made from `main` if it is not there.
        files: All that the commit holds. Other files in the repository stay, except results of other weights.
        private: Whether a new repository is private.
        message: Of the commit.

    Raises:
        PushError: If something failed; the message says what is on the Hub then.
    """
    info = make_repository(api, repo_id, revision, private)
    parent = str(info.sha)
    try:
        stale = _stale_results(_tree(api, repo_id, parent), files)
        added = [CommitOperationAdd(file.path, file.content) for file in files]
        deleted = [CommitOperationDelete(path) for path in stale]

        def commit() -> str:
            return api.create_commit(
                repo_id, [*added, *deleted], commit_message=message, revision=revision, parent_commit=parent
            ).oid

        oid = retry(commit, recover=lambda: _find_commit(api, repo_id, revision, parent, files))
    except HUB_ERRORS as error:
        raise _nothing_committed(repo_id, error) from error
    try:
        differences = _differences(_tree(api, repo_id, oid), files)
    except HUB_ERRORS as error:
        raise PushError(f"commit {oid} of {repo_id} was made, but not verified: {reason(error)}") from error
    if differences:
        raise PushError(
            f"commit {oid} of {repo_id} was made, but holds something else than was sent: {', '.join(differences)}. "
            "Do not use it."
        )
    return VerifiedCommit(oid, oid != parent, bool(info.private), tuple(stale))


def _info(api: HfApi, repo_id: str, revision: str) -> ModelInfo:
    return retry(lambda: api.model_info(repo_id, revision=revision))


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    entries = retry(lambda: list(api.list_repo_tree(repo_id, revision=commit, recursive=True)))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _find_commit(api: HfApi, repo_id: str, revision: str, parent: str, files: Sequence[PublishedFile]) -> str | None:
    """Return the commit whose answer got lost, or `None` if there is none.

    Raises:
        PushError: If it cannot be told, or the branch has got another commit.
    """
    try:
        head = str(_info(api, repo_id, revision).sha)
        if head == parent:
            return None
        if not _differences(_tree(api, repo_id, head), files):
            return head
    except HUB_ERRORS as error:
        raise PushError(
            f"it is not known whether {repo_id} has the commit: a request got no good answer, and then the branch "
            f"{revision} could not be read: {reason(error)}"
        ) from error
    raise PushError(
        f"nothing was committed to {repo_id}: somebody else committed {head} to the branch {revision} meanwhile. Push "
        "again to put this model on top of that."
    )


def _stale_results(tree: dict[str, RepoFile], files: Sequence[PublishedFile]) -> list[str]:
    """Return the files with results that would be taken for those of the new weights."""
    published = {file.path: file for file in files}
    if WEIGHTS not in tree or not _differs(tree[WEIGHTS], published[WEIGHTS]):
        return []
    return [path for path in tree if fnmatch(path, EVAL_RESULTS) and path not in published]


def _differences(tree: dict[str, RepoFile], files: Sequence[PublishedFile]) -> list[str]:
    missing = [f"{file.path} is missing" for file in files if file.path not in tree]
    changed = [f"{file.path} differs" for file in files if file.path in tree and _differs(tree[file.path], file)]
    return missing + changed


def _differs(there: RepoFile, here: PublishedFile) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 != here.sha256
    return there.blob_id != here.blob_id


def _nothing_committed(repo_id: str, error: BaseException) -> PushError:
    return PushError(f"nothing was committed to {repo_id}: {reason(error)}")
