# SPDX-License-Identifier: Apache-2.0
"""Pushes beside a training run, whose failures are seen."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from huggingface_hub import HfApi

from svit_hf.errors import PushError, SViTError
from svit_hf.files import link_or_copy
from svit_hf.hub.model_card import CardText
from svit_hf.hub.push import MAIN_BRANCH, check_repo_id, make_repository, push_folder


logger = logging.getLogger(__name__)

STAGED = ".push-"


class _Job(NamedTuple):
    title: str
    folder: Path
    future: "Future[None]"


class BackgroundPush:
    """Pushes of models in a thread, one after the other; of those that wait, only the newest is made.

    A push that has begun is finished. An older one that waits is dropped, which the log says. A failed push stops
    nothing; it is logged at once, and `close` raises. A `with` statement closes at its end, where a failed push does
    not take the place of another error.

    Args:
        repo_id: The repository, `USER/NAME`.
        work_dir: Folder for copies of what waits, on the disk of the models; that of the training run will do.
        revision: The branch, `main` by default.
        private: Whether a new repository is private.
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
        revision: str | None = None,
        private: bool = True,
        log: Callable[[str], None] = logger.warning,
        api: HfApi | None = None,
    ):
        check_repo_id(repo_id)
        self.repo_id = repo_id
        self.work_dir = Path(work_dir)
        self.revision = revision or MAIN_BRANCH
        self.private = private
        self.log = log
        self.api = api or HfApi()
        self.problems: list[str] = []
        self._num_jobs = 0
        self._newest: _Job | None = None

    def check_access(self) -> None:
        """Make the repository and the branch now, so that what cannot work fails before the training.

        Raises:
            PushError: If it cannot be done.
        """
        make_repository(self.api, self.repo_id, self.revision, self.private)

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
        staged = self._stage(Path(folder))
        if self._newest is not None and self._newest.future.cancel():
            shutil.rmtree(self._newest.folder)
            self.log(f"{self._newest.title} is not pushed to {self.repo_id}: {title} is newer")
        self._newest = _Job(title, staged, self.api.run_as_future(self._push, staged, card, title))

    def raise_failures(self) -> None:
        """Raise if a push has failed so far.

        Raises:
            PushError: If one has; the message lists all of them.
        """
        if self.problems:
            raise PushError(
                f"{len(self.problems)} pushes to {self.repo_id} failed. What is here is untouched, and `svit-hf push` "
                "publishes the folder of a run:\n" + "\n".join(self.problems)
            )

    def close(self) -> None:
        """Wait for the pushes that are left.

        Raises:
            PushError: If a push has failed.
        """
        self._wait()
        self.raise_failures()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wait()
        if error is None:
            self.raise_failures()

    def _wait(self) -> None:
        # the client of the Hub makes them one after the other
        if self._newest is not None:
            wait([self._newest.future])

    def _stage(self, folder: Path) -> Path:
        staged = self.work_dir / f"{STAGED}{self._num_jobs}"
        try:
            if self._num_jobs == 0:
                # of a process that did not come to its end
                for left_behind in self.work_dir.glob(f"{STAGED}*"):
                    shutil.rmtree(left_behind)
            shutil.copytree(folder, staged, copy_function=link_or_copy)
        except (OSError, shutil.Error) as error:
            raise SViTError(f"`folder` is {str(folder)!r}, which cannot be copied to be pushed: {error}") from error
        self._num_jobs += 1
        return staged

    def _push(self, folder: Path, card: CardText | None, title: str) -> None:
        try:
            report = push_folder(
                folder,
                self.repo_id,
                revision=self.revision,
                private=self.private,
                message=f"Push {title}",
                card=card,
                # loading a model would draw from the random numbers of the training
                add_probe=False,
                api=self.api,
            )
            self.log(f"{title} is pushed to {report.url}, commit {report.commit.oid if report.commit else None}")
        # an error that nobody sees is what this class is there to prevent, whatever it is
        except Exception as error:
            self.problems.append(f"{title} was not pushed: {error}")
            self.log(self.problems[-1])
        finally:
            shutil.rmtree(folder)
