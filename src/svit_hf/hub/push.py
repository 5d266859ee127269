# SPDX-License-Identifier: Apache-2.0
"""Publish a model on the Hub, now or beside a training: in one commit, which is read back.

The commit names the one that it builds on, so that the Hub refuses it where somebody else was faster.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo

# HTTPError is that of httpx; since huggingface_hub 2, of httpx2
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

from svit_hf.errors import PushError, SViTError
from svit_hf.files import link_or_copy
from svit_hf.hub.model_card import CardText
from svit_hf.hub.publication import Publication, prepare_publication


logger = logging.getLogger(__name__)

MAIN_BRANCH = "main"
HINTS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has to have the right to write there: https://huggingface.co/settings/tokens.",
    412: "Somebody else committed to the branch meanwhile. Push again to put this model on top of that.",
}
# what huggingface_hub raises when a request fails, or an upload that it makes of several
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)
# folders of copies that wait to be pushed
STAGED = ".push-"


@dataclass(frozen=True)
class PushReport:
    """What was pushed, or would be.

    Attributes:
        repo_id: The repository.
        revision: The branch.
        url: Where to look at it.
        publication: Files and card.
        is_private: Whether the repository is private; without a push, whether a new one would be.
        commit: The commit that was read back and found equal; `None` if nothing was sent.
        is_new: Whether this push made it; it makes none if nothing has changed.
    """

    repo_id: str
    revision: str
    url: str
    publication: Publication
    is_private: bool
    commit: str | None = None
    is_new: bool = False

    def text(self) -> str:
        """Return the report for a reader."""
        sizes = {file.path_in_repo: file.upload_info.size for file in self.publication.files}
        width = max(map(len, sizes))
        lines = [f"{path:<{width}} {size:>12,} bytes" for path, size in sizes.items()]
        lines += [f"left out: {name} ({reason})" for name, reason in self.publication.left_out.items()]
        lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
        visibility = "private" if self.is_private else "public"
        if self.commit is None:
            lines.append(f"nothing was sent; it would go to {self.url}, branch {self.revision} ({visibility} if new)")
        else:
            outcome = "pushed and read back" if self.is_new else "nothing to push, all of it is there"
            lines.append(f"{outcome}: {self.url} ({visibility}), branch {self.revision}, commit {self.commit}")
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
    report = PushReport(repo_id, revision, f"{api.endpoint}/{repo_id}", publication, private)
    if dry_run:
        return report
    with _explaining(f"the push to {repo_id} failed"):
        branch = make_repository(api, repo_id, revision, private)
        commit = api.create_commit(
            repo_id,
            publication.files,
            commit_message=message or f"Push {repo_id}",
            revision=revision,
            parent_commit=branch.sha,
        ).oid
    with _explaining(f"commit {commit} of {repo_id} was made, but not verified"):
        differences = _differences(_tree(api, repo_id, commit), publication.files)
    if differences:
        raise PushError(
            f"commit {commit} of {repo_id} was made, but holds something else than was sent: "
            f"{', '.join(differences)}. Do not use it."
        )
    return replace(report, is_private=bool(branch.private), commit=commit, is_new=commit != branch.sha)


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
    """Make a repository and a branch if they are not there, and return what the Hub says about the branch."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.model_info(repo_id, revision=revision)


class BackgroundPush:
    """Pushes of models in a thread, one after the other; of those that wait, only the newest is made.

    They go to the branch `main`, and a repository that is not there is made private.

    A push that has begun is finished. An older one that waits is dropped, which the log says. A failed push stops
    nothing; it is logged at once, and `close` raises. A `with` statement closes at its end, where a failed push does
    not take the place of another error.

    Args:
        repo_id: The repository, `USER/NAME`.
        work_dir: Folder for copies of what waits, on the disk of the models; that of the training run will do.
        log: Gets a line for each push that succeeded, failed or was dropped; by default they are logged as warnings.
        api: A client of another Hub.

    Attributes:
        problems: What went wrong so far.

    Raises:
        SViTError: If `repo_id` cannot be the name of a repository.
    """

    def __init__(
        self,
        repo_id: str,
        work_dir: str | os.PathLike[str],
        *,
        log: Callable[[str], None] = logger.warning,
        api: HfApi | None = None,
    ):
        check_repo_id(repo_id)
        self.repo_id, self.work_dir = repo_id, Path(work_dir)
        self.log, self.api = log, api or HfApi()
        self.problems: list[str] = []
        self._num_staged = 0
        # title, folder and future of the last one
        self._newest: tuple[str, Path, Future[None]] | None = None

    def check_access(self) -> None:
        """Make the repository and the branch now, so that what cannot work fails before the training.

        Raises:
            PushError: If it cannot be done.
        """
        with _explaining(f"{self.repo_id} cannot be pushed to"):
            make_repository(self.api, self.repo_id, MAIN_BRANCH, private=True)

    def submit(self, folder: str | os.PathLike[str], card: CardText | None = None, title: str | None = None) -> None:
        """Push a model as soon as the one before it is done.

        The folder is copied before this returns, by hard links where the disk allows it: it may be removed or replaced
        as a whole then, but its files may not be written to.

        Args:
            folder: The model, as in `push_folder`.
            card: What its card says; by default the folder has one.
            title: What to call it in the log and in the message of the commit; by default `folder`.

        Raises:
            SViTError: If the folder cannot be copied.
        """
        title = title or str(folder)
        staged = self._stage(folder)
        if self._newest is not None:
            older, its_folder, future = self._newest
            if future.cancel():
                shutil.rmtree(its_folder)
                self.log(f"{older} is not pushed to {self.repo_id}: {title} is newer")
        self._newest = title, staged, self.api.run_as_future(self._push, staged, card, title)

    def close(self) -> None:
        """Wait for the pushes that are left.

        Raises:
            PushError: If a push has failed; the message lists all that have.
        """
        # the client of the Hub makes them one after the other
        if self._newest is not None:
            wait([self._newest[2]])
        if self.problems:
            raise PushError(
                f"{len(self.problems)} pushes to {self.repo_id} failed. What is here is untouched, and `svit-hf push` "
                "publishes the folder of a run:\n" + "\n".join(self.problems)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: object, error: object, traceback: object) -> None:
        with nullcontext() if error is None else suppress(PushError):
            self.close()

    def _stage(self, folder: str | os.PathLike[str]) -> Path:
        staged = self.work_dir / f"{STAGED}{self._num_staged}"
        try:
            if self._num_staged == 0:
                # of a process that did not come to its end
                for left_behind in self.work_dir.glob(f"{STAGED}*"):
                    shutil.rmtree(left_behind)
            shutil.copytree(folder, staged, copy_function=link_or_copy)
        except (OSError, shutil.Error) as error:
            raise SViTError(f"`folder` is {str(folder)!r}, which cannot be copied to be pushed: {error}") from error
        self._num_staged += 1
        return staged

    def _push(self, folder: Path, card: CardText | None, title: str) -> None:
        try:
            report = push_folder(
                folder,
                self.repo_id,
                message=f"Push {title}",
                card=card,
                # loading a model would draw from the random numbers of the training
                add_probe=False,
                api=self.api,
            )
            self.log(f"{title} is pushed to {report.url}, commit {report.commit}")
        # an error that nobody sees is what this class is there to prevent, whatever it is
        except Exception as error:
            self.problems.append(f"{title} was not pushed: {error}")
            self.log(self.problems[-1])
        finally:
            shutil.rmtree(folder)


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Give what huggingface_hub raises a line that says what failed, why, and what can be done about it."""
    try:
        yield
    except HUB_ERRORS as error:
        # uploads wrap the error of the request that failed
        cause: BaseException = error
        while not isinstance(cause, (HTTPError, ConnectionError, TimeoutError)) and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        if isinstance(cause, HfHubHTTPError):
            response, said = cause.response, " ".join((cause.server_message or "").split())
            reason = f"{response.request.method} {response.request.url.path} was answered with {response.status_code}"
            reason = f"{reason}: {said}. {HINTS.get(response.status_code, '')}".rstrip()
        raise PushError(f"{what}: {reason}") from error


def _tree(api: HfApi, repo_id: str, commit: str | None) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _differences(tree: dict[str, RepoFile], files: Sequence[CommitOperationAdd]) -> list[str]:
    missing = [f"{file.path_in_repo} is missing" for file in files if file.path_in_repo not in tree]
    there = [file for file in files if file.path_in_repo in tree]
    return missing + [f"{file.path_in_repo} differs" for file in there if _differs(tree[file.path_in_repo], file)]


def _differs(there: RepoFile, here: CommitOperationAdd) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 != here.upload_info.sha256.hex()
    with here.as_file() as file:
        return there.blob_id != git_hash(file.read())
