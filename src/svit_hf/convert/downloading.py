# SPDX-License-Identifier: Apache-2.0
"""A checkpoint at an address becomes a file, by gdown, which goes on where a download broke off.

Nothing is taken on trust for having been downloaded: the file is read as safely as any other (`official.py`).
"""

import hashlib
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from svit_hf.errors import ConversionError


DRIVE = "drive.google.com"
TRIES = 5
# of silence, until a connection counts as broken
TIMEOUT_SECONDS = 60


def fetch_checkpoint(source: str, output_dir: Path) -> Path:
    """Return the file of a checkpoint, which is downloaded if `source` is an address.

    Args:
        source: A file, an address (http, https), or a link to a file in Google Drive.
        output_dir: What the checkpoint will be converted to; the download is kept beside it, and not made twice.

    Raises:
        ConversionError: If it cannot be downloaded. What is there of it is kept, and continued by another call.
    """
    if "://" not in source:
        return Path(source)
    parts = urlsplit(source)
    if parts.scheme.lower() not in ("http", "https"):
        raise ConversionError(f"`checkpoint` is {source!r}; addresses begin with http or https.")
    if parts.hostname == DRIVE and "/folders/" in source:
        raise ConversionError(
            f"`checkpoint` is {source!r}, a folder; open it in a browser and give the link of one file in it."
        )
    if parts.hostname == DRIVE and re.search(r"/d/[\w-]+|[?&]id=[\w-]+", source) is None:
        raise ConversionError(f"`checkpoint` is {source!r}, which names no file of Google Drive.")
    output_dir = output_dir.absolute()
    number = hashlib.sha256(source.encode()).hexdigest()[:8]
    complete = output_dir.with_name(f"{output_dir.name}-{number}.pth")
    if complete.is_file():
        return complete
    if find_spec("gdown") is None:
        raise ConversionError(
            "an address needs gdown: pip install gdown. Or download the file with a browser, and name it."
        )
    try:
        complete.parent.mkdir(parents=True, exist_ok=True)
        import_module("gdown").download(
            source,
            str(complete),
            # it repeats the address
            quiet="@" in parts.netloc,
            resume=True,
            use_cookies=False,
            retries=TRIES,
            timeout=TIMEOUT_SECONDS,
        )
    # gdown and requests have errors of their own for no network, no such file, and too many downloads today
    except Exception as error:
        raise ConversionError(
            f"{source!r} cannot be downloaded: {error}. Give the same command again to go on, or download the file "
            "with a browser and name it."
        ) from error
    return complete
