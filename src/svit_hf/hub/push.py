# SPDX-License-Identifier: Apache-2.0
"""Publish a model on the Hub: prepare, commit, report."""

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from svit_hf.errors import SViTError
from svit_hf.hub.commit import VerifiedCommit, commit_files
from svit_hf.hub.model_card import CardText
from svit_hf.hub.publication import Publication, prepare_publication


MAIN_BRANCH = "main"


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
