# SPDX-License-Identifier: Apache-2.0
"""`svit-hf push`: a model goes to the Hub, after a look at what would go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from svit_hf.errors import PushError
from svit_hf.hub.push import push_folder
from svit_hf.progress import say


@dataclass
class PushCommand:
    """Publish a model on the Hub in one commit, and read it back.

    Without --no-dry-run everything is prepared, checked and shown, and nothing is sent. Weights have to be
    safetensors; only what belongs to a model is published, and files here are never changed. The token is that of
    `hf auth login`, or of the environment variable HF_TOKEN.

    Args:
        folder: The folder of a finished training run, or a model: config.json, model.safetensors,
            preprocessor_config.json.
        repo_id: Where it goes, as USER/NAME; made if it is not there.
        dry_run: Show what would be pushed, and send nothing.
        revision: The branch; made from the head of main if it is not there.
        private: Whether a new repository is private. One that exists stays as it is.
        message: Message of the commit.
        licence: Identifier on the Hub of the licence of the weights, for a card that is made of the report of a run.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    repo_id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO_ID")]
    dry_run: bool = True
    revision: str = "main"
    private: bool = True
    message: str | None = None
    licence: str | None = None

    def run(self) -> int:
        """Push, or show what would be pushed, and return the exit status.

        Raises:
            SViTError: If something in the folder is not fit to be published.
            PushError: If the push failed.
        """
        if not self.dry_run:
            say(f"checking {self.folder}, and sending it to {self.repo_id}")
        try:
            report = push_folder(
                self.folder,
                self.repo_id,
                revision=self.revision,
                private=self.private,
                message=self.message,
                licence=self.licence,
                dry_run=self.dry_run,
            )
        except PushError as error:
            raise PushError(
                f"{error}\nNothing in {str(self.folder)!r} was changed. The same command may be given again: it "
                "commits what is not on the Hub yet, and reads all of it back."
            ) from error
        lines = [report.text()]
        if self.dry_run:
            lines = ["The card:", "", report.publication.card, "", *lines, "Add --no-dry-run to push it."]
        else:
            lines.append(f"\nWhether others get what is here, says:\n\n    svit-hf doctor {self.repo_id}")
        print("\n".join(lines))  # noqa: T201 - a program's result
        return 0
