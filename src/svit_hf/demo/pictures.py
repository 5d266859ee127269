# SPDX-License-Identifier: Apache-2.0
"""Pictures that visitors bring, read within limits or refused in a sentence, and pictures for those who bring none."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from svit_hf.data.decoding import DecodingError, ImageLimits, decode_image
from svit_hf.errors import DataError
from svit_hf.visualization.pictures import find_pictures


# three bytes for each pixel are in memory while a picture is prepared
LIMITS = ImageLimits(max_pixels=32_000_000, max_bytes=16 << 20)
# longer edge, in pixels
PREVIEW_EDGE = 480
MOST_EXAMPLES = 24


@dataclass(frozen=True)
class Upload:
    """Picture of a visitor.

    Attributes:
        picture: In RGB, upright.
        note: What a visitor might not expect of it; empty if there is nothing.
    """

    picture: Image.Image
    note: str


# every model and every event asks for the same picture; files of uploads are named by their content
@lru_cache(maxsize=2)
def read_upload(file: str) -> Upload:
    """Read the picture in a file.

    Raises:
        DataError: If there is none, or it is too large; the message is for the visitor.
    """
    try:
        num_bytes = os.path.getsize(file)  # noqa: PTH202 - a string
        if num_bytes > LIMITS.max_bytes:
            raise DataError(f"This file has {num_bytes / 1e6:.0f} MB; the demo takes {LIMITS.max_bytes / 1e6:.0f}.")
        picture = decode_image(file, LIMITS)
        with Image.open(file) as stored:
            mode, num_frames = stored.mode, getattr(stored, "n_frames", 1)
    except DecodingError as error:
        raise DataError(_refusal(error)) from error
    except OSError as error:
        raise DataError("This file is no longer there; please give it again.") from error
    notes = [f"Of {num_frames} pictures in the file, the first is shown."] if num_frames > 1 else []
    if mode == "CMYK":
        notes.append("Its colours, made for printing (CMYK), were turned into those of a screen.")
    return Upload(picture, " ".join(notes))


def describe_upload(file: str | None) -> tuple[str, Image.Image | None]:
    """Return what to say about an upload, as HTML, and the picture, small.

    What is said is why there is no picture, or what is not as a visitor might expect; empty if there is nothing.
    """
    if file is None:
        return "", None
    try:
        upload = read_upload(file)
    except DataError as error:
        return f'<p class="error" role="alert">{escape(str(error))}</p>', None
    preview = upload.picture.copy()
    preview.thumbnail((PREVIEW_EDGE, PREVIEW_EDGE))
    return f'<p class="note">{escape(upload.note)}</p>' if upload.note else "", preview


def choose_examples(sources: Sequence[str], models: Sequence[str]) -> list[Path]:
    """Return pictures for visitors without one.

    Args:
        sources: Files, folders or globs. If there are none: the quickstart's digits for its model; for any other, the
            two photographs that come with scikit-learn, where it is installed.
        models: The models, as the user names them.
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


def _refusal(error: DecodingError) -> str:
    reason = str(error)
    if "max_image_pixels" in reason or isinstance(error.__cause__, Image.DecompressionBombError):
        return f"This picture is too large: the demo takes {LIMITS.max_pixels / 1e6:.0f} million pixels."
    if not reason.startswith(("it is ", "there are ")):
        reason = f"it is damaged, or not all of it is there ({reason})"
    return f"This file cannot be shown: {reason}."
