# SPDX-License-Identifier: Apache-2.0
"""`svit-hf quickstart`: the arguments, and what is said at the end."""

from dataclasses import dataclass
from pathlib import Path

from svit_hf.extras import require_extra
from svit_hf.progress import say


@dataclass
class QuickstartCommand:
    """Train a tiny SViT from scratch on real handwriting, without a network.

    The 1797 digits come with scikit-learn. Four fifths of them train the model, as `svit-hf train` does; the rest is
    held out to evaluate it. The model is saved, loaded again in a fresh process, and asked through a pipeline. The
    exit status is 1 if it gets less than 97 % of the held-out digits right.

    Args:
        output_dir: The folder to write. It is new or empty, or holds an earlier quickstart, which is replaced.
        epochs: How often training goes through the digits.
        seed: Fixes the initial weights and the order of the digits.
    """

    output_dir: Path = Path("runs/quickstart")
    epochs: int = 12
    seed: int = 0

    def run(self) -> int:
        """Do all of it, print what came out and where it is, and return the exit status."""
        require_extra("quickstart", "quickstart")
        # seconds pass while these are imported
        say("loading PyTorch, Transformers and datasets")
        from svit_hf.quickstart.digits import run_quickstart

        report = run_quickstart(self.output_dir, epochs=self.epochs, seed=self.seed)
        print(report.text())  # noqa: T201 - a program's result
        return 1 if report.problems else 0
