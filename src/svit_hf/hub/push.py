# SPDX-License-Identifier: Apache-2.0
"""Publish a model on the Hub: one commit with all files, sent until it is there, there at most once, and read back.

The commit names the one that it builds on, so that the Hub refuses a second one of the same kind. Where the answer of
the Hub got lost, the head of the branch tells whether the commit arrived.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, ModelInfo

# HTTPError is that of httpx; since huggingface_hub 2, of httpx2
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

from svit_hf.errors import PushError, SViTError
from svit_hf.hub.model_card import CardText
from svit_hf.hub.publication import WEIGHTS, Publication, prepare_publication


MAIN_BRANCH = "main"
EVAL_RESULTS = ".eval_results/*"
# before each further attempt; huggingface_hub itself makes some requests again, too
WAIT_SECONDS = (1, 2, 4, 8, 16)
# a server that asks for more patience is not waited for
MOST_SECONDS = 120
TRANSIENT_STATUSES = (408, 429)
HINTS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has to have the right to write there: https://huggingface.co/settings/tokens.",
}

# what huggingface_hub raises when a request fails, or an upload that it makes of several
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
Result = TypeVar("Result")


class VerifiedCommit(NamedTuple):
    """State of the Hub after a push.

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


@dataclass(frozen=True)
class PushReport:
    """What was pushed, or would be.

    Attributes:
        repo_id: The repository.
        revision: The branch.
        url: Where to look at it.
        publication: Files and card.
        commit: What is on the Hub, read back and found equal; `None` if nothing was sent.
        is_private: Whether the repository is private; without a push, whether a new one would be.
    """

    repo_id: str
    revision: str
    url: str
    publication: Publication
    commit: VerifiedCommit | None
    is_private: bool

    def text(self) -> str:
        """Return the report for a reader."""
        sizes = {file.path_in_repo: file.upload_info.size for file in self.publication.files}
        width = max(map(len, sizes))
        lines = [f"{path:<{width}} {size:>12,} bytes" for path, size in sizes.items()]
        lines += [f"left out: {name} ({reason})" for name, reason in self.publication.left_out.items()]
        lines += [f"deleted: {name} (of earlier weights)" for name in (self.commit.deleted if self.commit else ())]
        lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
        visibility = "private" if self.is_private else "public"
        if self.commit is None:
            lines.append(f"nothing was sent; it would go to {self.url}, branch {self.revision} ({visibility} if new)")
        else:
            outcome = "pushed and read back" if self.commit.is_new else "nothing to push, all of it is there"
            lines.append(f"{outcome}: {self.url} ({visibility}), branch {self.revision}, commit {self.commit.oid}")
        return "\n".join(lines)


def push_folder(  # noqa: PLR0913 - what, where to, and how
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = True,
    message: str | None = None,
    card: CardText | None = None,
    licence: str | None = None,
    dry_run: bool = False,
    add_probe: bool = True,
    api: HfApi | None = None,
) -> PushReport:
    """Publish a model in one commit, and read it back.

    Folders are only read. The token is that of `hf auth login`, or of the environment variable `HF_TOKEN`.

    Args:
        folder: A model (`config.json`, `model.safetensors`, `preprocessor_config.json`), or the folder of a training
            run, whose `model/` is published. Code is added to a model without it, so that it loads everywhere.
        repo_id: The repository on the Hub, `USER/NAME`; made if it is not there.
        revision: The branch; made from the head of `main` if it is not there, `main` by default.
        private: Whether a new repository is private. One that exists stays as it is.
        message: Of the commit.
        card: What the card says; by default the README.md of the folder, or a card made of the report of the run.
        licence: Identifier on the Hub of the licence of the weights, for a card that is made of the report of a run.
        dry_run: Prepare and check everything, and send nothing.
        add_probe: Whether a model without a probe gets one, for which it is loaded.
        api: A client of another Hub.

    Raises:
        SViTError: If something in the folder is missing, broken or not fit to be published; nothing was sent.
        PushError: If the Hub could not be reached, refused, or holds something else than what was sent.
    """
    api = api or HfApi()
    revision = revision or MAIN_BRANCH
    check_repo_id(repo_id)
    publication = prepare_publication(Path(folder), repo_id, card, licence, add_probe)
    url = f"{api.endpoint}/{repo_id}"
    if dry_run:
        return PushReport(repo_id, revision, url, publication, None, private)
    commit = commit_files(
        api, repo_id, revision, publication.files, private=private, message=message or f"Push {repo_id}"
    )
    return PushReport(repo_id, revision, url, publication, commit, commit.is_private)


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        SViTError: If it is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SViTError(f"`repo_id` is {repo_id!r}: {error}") from error
    if "/" not in repo_id:
        raise SViTError(f"`repo_id` is {repo_id!r}; it has to be USER/NAME or ORGANISATION/NAME.")


def make_repository(api: HfApi, repo_id: str, revision: str, private: bool) -> ModelInfo:
    """Make a repository and a branch if they are not there.

    Returns:
        What the Hub says about the branch.

    Raises:
        PushError: If it cannot be done.
    """
    try:
        _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        try:
            return _info(api, repo_id, revision)
        except RevisionNotFoundError:
            _retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
            return _info(api, repo_id, revision)
    except HUB_ERRORS as error:
        raise _nothing_committed(repo_id, error) from error


def commit_files(
    api: HfApi, repo_id: str, revision: str, files: Sequence[CommitOperationAdd], *, private: bool, message: str
) -> VerifiedCommit:
    """Commit files to a branch, and read them back; other files stay there, except results of other weights.

    Raises:
        PushError: If something failed; the message says what is on the Hub then.
    """
    info = make_repository(api, repo_id, revision, private)
    parent = str(info.sha)
    try:
        stale = _stale_results(_tree(api, repo_id, parent), files)
        operations: list[CommitOperation] = [*files, *map(CommitOperationDelete, stale)]

        def commit() -> str:
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
            ).oid

        oid = _retry(commit, recover=lambda: _find_commit(api, repo_id, revision, parent, files))
    except HUB_ERRORS as error:
        raise _nothing_committed(repo_id, error) from error
    try:
        differences = _differences(_tree(api, repo_id, oid), files)
    except HUB_ERRORS as error:
        raise PushError(f"commit {oid} of {repo_id} was made, but not verified: {_reason(error)}") from error
    if differences:
        raise PushError(
            f"commit {oid} of {repo_id} was made, but holds something else than was sent: {', '.join(differences)}. "
            "Do not use it."
        )
    return VerifiedCommit(oid, oid != parent, bool(info.private), tuple(stale))


def _info(api: HfApi, repo_id: str, revision: str) -> ModelInfo:
    return _retry(lambda: api.model_info(repo_id, revision=revision))


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    entries = _retry(lambda: list(api.list_repo_tree(repo_id, revision=commit, recursive=True)))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _find_commit(
    api: HfApi, repo_id: str, revision: str, parent: str, files: Sequence[CommitOperationAdd]
) -> str | None:
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
            f"{revision} could not be read: {_reason(error)}"
        ) from error
    raise PushError(
        f"nothing was committed to {repo_id}: somebody else committed {head} to the branch {revision} meanwhile. Push "
        "again to put this model on top of that."
    )


def _stale_results(tree: dict[str, RepoFile], files: Sequence[CommitOperationAdd]) -> list[str]:
    """Return the files with results that would be taken for those of the new weights."""
    published = {file.path_in_repo: file for file in files}
    if WEIGHTS not in tree or not _differs(tree[WEIGHTS], published[WEIGHTS]):
        return []
    return [path for path in tree if fnmatch(path, EVAL_RESULTS) and path not in published]


def _differences(tree: dict[str, RepoFile], files: Sequence[CommitOperationAdd]) -> list[str]:
    there = [(file, tree.get(file.path_in_repo)) for file in files]
    missing = [f"{here.path_in_repo} is missing" for here, entry in there if entry is None]
    return missing + [f"{here.path_in_repo} differs" for here, entry in there if entry and _differs(entry, here)]


def _differs(there: RepoFile, here: CommitOperationAdd) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 != here.upload_info.sha256.hex()
    with here.as_file() as file:
        return there.blob_id != git_hash(file.read())


def _nothing_committed(repo_id: str, error: BaseException) -> PushError:
    return PushError(f"nothing was committed to {repo_id}: {_reason(error)}")


def _retry(request: Callable[[], Result], recover: Callable[[], Result | None] = lambda: None) -> Result:
    """Make a request again, after longer and longer waits, while it fails for reasons that may pass.

    Args:
        request: The request.
        recover: Asked after every failure whether the request was successful all the same, and only its answer got
            lost: returns the result then.

    Raises:
        HTTPError, OSError, RuntimeError, ValueError: The last failure.
    """
    for wait in (*WAIT_SECONDS, None):
        try:
            return request()
        except HUB_ERRORS as error:
            if (result := recover()) is not None:
                return result
            seconds = _seconds_asked_for(error)
            if wait is None or not _is_transient(error) or seconds > MOST_SECONDS:
                raise
            time.sleep(max(wait, seconds))
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: BaseException) -> bool:
    """Whether a failure may pass: a timeout, too many requests, trouble on the server or with the connection."""
    error = _of_request(error)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in TRANSIENT_STATUSES or status >= 500
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def _reason(error: BaseException) -> str:
    """Return in a line why something failed, and what can be done about it."""
    error = _of_request(error)
    if not isinstance(error, HfHubHTTPError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    response = error.response
    said = f": {' '.join(error.server_message.split())}" if error.server_message else ""
    request = f"{response.request.method} {response.request.url.path}"
    return f"{request} was answered with {response.status_code}{said}. {HINTS.get(response.status_code, '')}".rstrip()


def _of_request(error: BaseException) -> BaseException:
    """Return the error of the request that an error is due to, if there is one: uploads wrap theirs."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
        cause = cause.__cause__
    return cause or error


def _seconds_asked_for(error: BaseException) -> float:
    error = _of_request(error)
    seconds = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    # the other form of this header, a date, is not used by the Hub
    return float(seconds) if seconds.isdecimal() else 0.0
