# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written as a whole or not at all."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from svit_hf.errors import SViTError


# what libraries that hide the number of the error say of a full disk: safetensors, and torch's writers of archives
_SAYS_DISK_FULL = re.compile(r"no space left|disk quota exceeded|os error (28|122)\b|PytorchStreamWriter failed", re.I)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file beside `path`, which takes its place when the block ends well and is removed otherwise.

    The temporary name cannot be guessed, and a link at `path` is replaced rather than followed. What was written is on
    the disk before it takes the place of an earlier file.

    Raises:
        SViTError: If the disk is full; the temporary file is gone by then, and an earlier file is as it was.
    """
    path = Path(path)
    with _not_written(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(_default_mode(0o666))
            _flush(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush(path.parent)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which is renamed to it when the block ends well and removed otherwise.

    Raises:
        SViTError: If the disk is full; the temporary folder is gone by then.
        OSError: If `path` is there already and not an empty folder.
    """
    path = Path(path)
    with _not_written(path):
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            temporary.chmod(_default_mode(0o777))
            for file in temporary.rglob("*"):
                _flush(file)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(path.parent)


@contextmanager
def files_into(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder, whose files take their places in the folder `path` when the block ends well.

    Until then nothing is in `path`, and afterwards nothing else in it has changed.

    Raises:
        SViTError: If the disk is full; what was written is gone by then.
    """
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(path) as folder:
            yield folder
        return
    # inside and not beside it: the folder may be a mount point
    with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as workspace:
        complete = Path(workspace) / "complete"
        with whole_folder(complete) as folder:
            yield folder
        for entry in sorted(complete.rglob("*")):
            target = path / entry.relative_to(complete)
            if entry.is_dir():
                target.mkdir(exist_ok=True)
            else:
                entry.replace(target)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Let a file be at another place too: by a hard link, or as a copy where the disk is another or has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a text file in UTF-8, as a whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_text(path: Path, argument: str) -> str:
    """Read a text file in UTF-8 that a user named.

    Raises:
        SViTError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SViTError(f"`{argument}` is {str(path)!r}, which cannot be read: {error}") from error


def read_json(path: Path, argument: str) -> Any:
    """Read a JSON file that a user named.

    Raises:
        SViTError: If it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path, argument))
    except (json.JSONDecodeError, RecursionError) as error:
        raise SViTError(f"`{argument}` is {str(path)!r}, which is not JSON: {error}") from error


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


def require_new_folder(path: Path, argument: str) -> None:
    """Make the folder around a folder to be.

    Raises:
        SViTError: If there is something in the folder, or it cannot be made.
    """
    try:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise SViTError(f"`{argument}` is {str(path)!r}, which is in use; name a new or an empty folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SViTError(f"`{argument}` is {str(path)!r}, which cannot be written: {error}") from error
    if not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise SViTError(f"`{argument}` is {str(path)!r}, which cannot be written.")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # OSError with another number is about something else, whatever file name its text quotes
        if not isinstance(cause, OSError) and _SAYS_DISK_FULL.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def explaining_full_disk(explain: Callable[[Exception], str]) -> Iterator[None]:
    """Give what is raised for want of room an explanation.

    Raises:
        SViTError: With the explanation, if there is no room.
    """
    try:
        yield
    except SViTError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise SViTError(explain(error)) from error


def _not_written(path: Path) -> AbstractContextManager[None]:
    text = f"the disk is full: {str(path)!r} was not written, and nothing is left of the attempt. Make room and give "
    return explaining_full_disk(lambda _: text + "the same command again.")


def _default_mode(mode: int) -> int:
    # temporary files are private; what takes their place has the rights that any new file has
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def _flush(path: Path) -> None:
    """Wait until a file, or the list of what is in a folder, is on the disk."""
    # folders cannot be opened everywhere
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
