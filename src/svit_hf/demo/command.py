# SPDX-License-Identifier: Apache-2.0
"""`svit-hf demo`: the arguments, and what is said on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from svit_hf.errors import SViTError
from svit_hf.extras import require_extra
from svit_hf.progress import say


QUICKSTART = Path("runs/quickstart")


@dataclass(kw_only=True)
class DemoCommand:
    """Show a model in the browser: its answer to your pictures, its super tokens, and where a point looks.

    The page has sliders for stage, layer and cell. With two models, it shows both beside each other. The answer of a
    model for segmentation or detection is its masks or boxes.

    Args:
        models: One model, or two to compare: folders, ids of the Hub, or folders of training runs. Without one, the
            model of `svit-hf quickstart` is shown.
        examples: Pictures to try: files, folders or globs. By default those of the quickstart for its model, and two
            photographs where scikit-learn is installed, which has them.
        host: Address to listen at; 0.0.0.0 lets other machines in. This machine alone, if not given.
        port: Port to listen at; the first free one from 7860 on, if not given.
        open: Open the page in a browser.
        space: Do not show the page, but write it to this new folder as a Space of the Hub.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODEL [OTHER]]")] = ()
    examples: tuple[str, ...] = ()
    host: str | None = None
    port: int | None = None
    open: bool = False
    space: Path | None = None

    def run(self) -> int:
        """Serve the page until interrupted, or write a Space, and return the exit status.

        Raises:
            SViTError: If a package is missing, or an argument is impossible.
        """
        require_extra("demo", "demo")
        models = self.models or (_quickstart_model(),)
        if len(models) > 2:
            raise SViTError(f"`models` names {len(models)}; the demo shows one, or two beside each other.")
        # seconds pass while these are imported
        say("loading PyTorch, Transformers and gradio")
        from transformers.utils import logging

        from svit_hf.demo.page import serve
        from svit_hf.demo.pictures import choose_examples
        from svit_hf.demo.space import write_space
        from svit_hf.demo.viewer import open_viewer

        logging.disable_progress_bar()
        examples = choose_examples(self.examples, models)
        viewers = [open_viewer(model) for model in models]
        if self.space is not None:
            write_space(viewers, examples, self.space)
            print(_after_space(self.space))  # noqa: T201 - the result
            return 0
        serve(viewers, examples, host=self.host, port=self.port, opens_browser=self.open, announce=_announce)
        return 0


def _quickstart_model() -> str:
    if not (QUICKSTART / "model" / "config.json").is_file():
        raise SViTError(
            f"no MODEL is named, and {str(QUICKSTART)!r} has none. Make one there, in a minute and without downloads, "
            "with `svit-hf quickstart`; or name a folder, a run or an id of the Hub: `svit-hf demo MODEL`."
        )
    return str(QUICKSTART)


def _announce(address: str) -> None:
    say(f"Open {address} in a browser; Ctrl+C ends the demo.")


def _after_space(folder: Path) -> str:
    return f"""{folder} is a Space. Try it as the Hub will run it:

    pip install -r {folder}/requirements.txt && python {folder}/app.py

and publish it, after you have stated the licence of the model in its README.md:

    hf repos create USER/NAME --repo-type space --space-sdk gradio
    hf upload USER/NAME {folder} . --repo-type space"""
