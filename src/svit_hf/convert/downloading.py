# SPDX-License-Identifier: Apache-2.0
"""A checkpoint at an address becomes a file: within a size, and continued where it broke off.

Nothing is taken on trust for having been downloaded: the file is read as safely as any other (`official.py`).
"""

import hashlib
import http.client
import os
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from svit_hf.errors import ConversionError
from svit_hf.files import is_disk_full, write_text
from svit_hf.progress import Progress, say


TRIES = 5
# of silence, until a connection counts as broken
TIMEOUT_SECONDS = 60
PIECE_BYTES = 1 << 20
DRIVE = "drive.google.com"


def fetch_checkpoint(source: str, output_dir: Path, max_bytes: int) -> Path:
    """Return the file of a checkpoint, which is downloaded if `source` is an address.

    Args:
        source: A file, an address (http, https), or a link to a file in Google Drive.
        output_dir: What the checkpoint will be converted to; the download is kept beside it, and not made twice.
        max_bytes: The largest file to download.

    Raises:
        ConversionError: If it cannot be downloaded. What is there of it is kept, and continued by another call.
    """
    scheme = urlsplit(source).scheme.lower() if "://" in source else ""
    if not scheme:
        return Path(source)
    if scheme not in ("http", "https"):
        raise ConversionError(f"`checkpoint` is {source!r}; addresses begin with http or https.")
    output_dir = output_dir.absolute()
    number = hashlib.sha256(source.encode()).hexdigest()[:8]
    complete = output_dir.with_name(f"{output_dir.name}-{number}.pth")
    if complete.is_file():
        return complete
    partial = complete.with_name(f"{complete.name}.part")
    try:
        complete.parent.mkdir(parents=True, exist_ok=True)
        if urlsplit(source).hostname == DRIVE:
            _download_from_drive(source, partial, max_bytes)
        else:
            _download(source, partial, max_bytes)
        partial.replace(complete)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else str(error)
        raise ConversionError(f"{str(complete)!r} cannot be written: {reason}.") from error
    _note_of(partial).unlink(missing_ok=True)
    return complete


def _download(source: str, partial: Path, max_bytes: int) -> None:
    for number in range(1, TRIES + 1):
        try:
            _go_on(source, partial, max_bytes)
            return
        except HTTPError as error:
            raise ConversionError(f"{source!r} cannot be downloaded: {error.code} {error.reason}.") from error
        # the server, or the way to it, failed; what cannot be written here is another matter
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            if error.errno is not None:
                raise
            reason = str(error)
        say(f"the download broke off ({reason}); try {number} of {TRIES}")
    kept = partial.stat().st_size if partial.is_file() else 0
    raise ConversionError(
        f"{source!r} cannot be downloaded: {reason}. {kept / 1e6:.1f} MB are kept in {str(partial)!r}; give the same "
        "command again to go on from there."
    )


def _go_on(source: str, partial: Path, max_bytes: int) -> None:
    """Download what is missing of a file."""
    have, version = _what_is_there(partial)
    # without an `If-Range` that holds, the server sends the whole file
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    with urlopen(
        Request(source, headers=headers | {"Accept-Encoding": "identity"}), timeout=TIMEOUT_SECONDS
    ) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise ConversionError(f"{source!r} is a web page and no file; give the address of the file itself.")
        is_continued = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if is_continued else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _require_size(source, total or 0, max_bytes)
        if not is_continued:
            write_text(_note_of(partial), _version_of(answer.headers))
        with partial.open("ab" if is_continued else "wb") as file:
            have = _copy(answer, file, source, have, total, max_bytes)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _copy(answer: Any, file: Any, source: str, have: int, total: int | None, max_bytes: int) -> int:
    """Copy the body of an answer, and return how many bytes the file has then."""
    with Progress(-(-(total or max_bytes) // PIECE_BYTES), "MiB", initial=have // PIECE_BYTES) as progress:
        while piece := answer.read(PIECE_BYTES):
            have += len(piece)
            _require_size(source, have, max_bytes)
            file.write(piece)
            progress.advance()
    return have


def _require_size(source: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ConversionError(
            f"{source!r} has {num_bytes / 1e9:.2f} GB or more; `max_gigabytes` allows {max_bytes / 1e9:g}."
        )


def _what_is_there(partial: Path) -> tuple[int, str]:
    """Return how many bytes are there, and of which version of the file; 0 where that is not known."""
    note = _note_of(partial)
    version = note.read_text(encoding="utf-8") if note.is_file() else ""
    return (partial.stat().st_size, version) if version and partial.is_file() else (0, "")


def _note_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _version_of(headers: Any) -> str:
    """Return what says that a file is the same, or nothing; a weak tag says less."""
    tag = str(headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _download_from_drive(source: str, partial: Path, max_bytes: int) -> None:
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
        gdown.download(source, str(partial), quiet=True, resume=True, use_cookies=False, progress=watch)
    except ConversionError:
        raise
    # gdown and requests have errors of their own for no network, no such file, and too many downloads today
    except Exception as error:
        raise ConversionError(
            f"{source!r} cannot be downloaded: {error}. Give the same command again to go on, or download the file "
            "with a browser and name it."
        ) from error
    if not partial.is_file():
        raise ConversionError(f"{source!r} cannot be downloaded; download the file with a browser and name it.")
