# SPDX-License-Identifier: Apache-2.0
"""Pictures to try."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from svit_hf.browser_demo.uploads import read_upload
from svit_hf.errors import DataError
from svit_hf.visualization.pictures import find_pictures


MOST_EXAMPLES = 24


def choose_examples(sources: Sequence[str], models: Sequence[str]) -> list[Path]:
    """Return pictures for visitors without one.

    Args:
        sources: Files, folders or globs. If there are none: the quickstart's digits for its model; for any other, the
            two photographs that come with scikit-learn, where it is installed.
        models: The models, as the user names them.

    Raises:
        SViTError: If a source has no pictures.
    """
    if sources:
        return [file for file in map(Path, find_pictures(sources)) if _can_be_read(file)][:MOST_EXAMPLES]
    for model in models:
        for folder in (Path(model), Path(model).parent):
            if (folder / "quickstart.json").is_file():
                return sorted((folder / "images").glob("*.png"))
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        return []
    return sorted((Path(spec.origin).parent / "datasets" / "images").glob("*.jpg"))


def _can_be_read(file: Path) -> bool:
    try:
        read_upload(str(file))
    except DataError:
        return False
    return True
