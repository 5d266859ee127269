# SPDX-License-Identifier: Apache-2.0
"""A checkpoint at an address becomes a file, within a size.

Nothing is taken on trust for having been downloaded: the file is read as safely as any other (`official.py`).
"""

import hashlib
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# HTTPError is that of httpx; since huggingface_hub 2, of httpx2
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.file_download import http_get

from svit_hf.errors import ConversionError
from svit_hf.files import is_disk_full, whole_file


DRIVE = "drive.google.com"
WEB_PAGE = re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE)


def fetch_checkpoint(source: str, output_dir: Path, max_bytes: int) -> Path:
    """Return the file of a checkpoint, which is downloaded if `source` is an address.

    Args:
        source: A file, an address (http, https), or a link to a file in Google Drive.
        output_dir: What the checkpoint will be converted to; the download is kept beside it, and not made twice.
        max_bytes: The largest file to download.

    Raises:
        ConversionError: If it cannot be downloaded.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if not scheme:
        return Path(source)
    if scheme not in ("http", "https"):
        raise ConversionError(f"`checkpoint` is {source!r}; addresses begin with http or https.")
    output_dir = output_dir.absolute()
    number = hashlib.sha256(source.encode()).hexdigest()[:8]
    path = output_dir.with_name(f"{output_dir.name}-{number}.pth")
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            if urlsplit(source).hostname == DRIVE:
                _download_from_drive(source, temporary, max_bytes)
            else:
                _download(source, temporary, max_bytes)
    except OSError as error:
        raise ConversionError(f"{str(path)!r} cannot be written: {error}.") from error
    return path


def _download(source: str, path: Path, max_bytes: int) -> None:
    """Download a file; huggingface_hub goes on where a connection broke off."""
    try:
        with path.open("wb") as file:
            http_get(source, _Limited(file, source, max_bytes))  # type: ignore[arg-type]
    except (HTTPError, OSError, ValueError) as error:
        if isinstance(error, ConversionError) or is_disk_full(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(f"{source!r} cannot be downloaded: {reason}") from error
    with path.open("rb") as file:
        if WEB_PAGE.match(file.read(256)):
            raise ConversionError(f"{source!r} is a web page and no file; give the address of the file itself.")


class _Limited:
    """File that takes so many bytes, and refuses more."""

    def __init__(self, file: Any, source: str, max_bytes: int):
        self.file, self.source, self.max_bytes = file, source, max_bytes

    def write(self, piece: bytes) -> int:
        _require_size(self.source, self.file.tell() + len(piece), self.max_bytes)
        written: int = self.file.write(piece)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _require_size(source: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ConversionError(
            f"{source!r} has {num_bytes / 1e9:.2f} GB or more; `max_gigabytes` allows {max_bytes / 1e9:g}."
        )


def _download_from_drive(source: str, path: Path, max_bytes: int) -> None:
    if "/folders/" in source:
        raise ConversionError(
            f"`checkpoint` is {source!r}, a folder; open it in a browser and give the link of one file in it."
        )
    if re.search(r"/d/[\w-]+|[?&]id=[\w-]+", source) is None:
        raise ConversionError(f"`checkpoint` is {source!r}, which names no file of Google Drive.")
    if find_spec("gdown") is None:
        raise ConversionError(
            "a link to Google Drive needs gdown: pip install gdown. Or download the file with a browser, and name it."
        )
    gdown = import_module("gdown")

    def watch(done: int, total: int | None) -> None:
        _require_size(source, max(done, total or 0), max_bytes)

    try:
        gdown.download(source, str(path), quiet=True, use_cookies=False, progress=watch)
    except ConversionError:
        raise
    # gdown and requests have errors of their own for no network, no such file, and too many downloads today
    except Exception as error:
        raise ConversionError(
            f"{source!r} cannot be downloaded: {error}. Try again, or download the file with a browser and name it."
        ) from error
    if not path.stat().st_size:
        raise ConversionError(f"{source!r} cannot be downloaded; download the file with a browser and name it.")
