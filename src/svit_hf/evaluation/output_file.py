# SPDX-License-Identifier: Apache-2.0
"""Write a file as a whole or not at all, and find out early whether that will work."""

import os
from pathlib import Path

from svit_hf.errors import SViTError


def require_writable(path: Path, argument: str) -> None:
    """Make the folder of a file to be.

    Raises:
        SViTError: If the file cannot be written later.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SViTError(f"`{argument}` is {str(path)!r}, whose folder cannot be made: {error}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SViTError(f"`{argument}` is {str(path)!r}, which is a folder, or in one that cannot be written to.")


def write_whole(path: Path, content: str) -> None:
    """Write a text file, in place of one of the same name."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
