# SPDX-License-Identifier: Apache-2.0
"""An output folder that a program may replace, because it wrote everything in it, and that is never half written."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from svit_hf.errors import SViTError


UNFINISHED = ".unfinished-"


@contextmanager
def replace_own_output(output_dir: Path, report_name: str, made_by: str) -> Iterator[Path]:
    """Yield an empty folder to write to; its content replaces that of `output_dir` if the block ends without an error.

    The block writes a report, too: a JSON object in which `add_provenance` has put who made the folder, and of which
    files. A folder with any other file in it is left alone.

    Args:
        output_dir: Missing, empty, or written by the same program before.
        report_name: File name of the report.
        made_by: The program.

    Raises:
        SViTError: If the folder holds something else, or cannot be written.
    """
    _refuse_foreign_files(output_dir, report_name, made_by)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # inside and not beside it: the folder may be a mount point
        work = TemporaryDirectory(prefix=UNFINISHED, dir=output_dir)
    except OSError as error:
        raise SViTError(f"`output_dir` is {str(output_dir)!r}, which cannot be written: {error}") from error
    with work:
        new = Path(work.name) / "new"
        new.mkdir()
        yield new
        # there was time to put something into the folder
        _refuse_foreign_files(output_dir, report_name, made_by)
        for old in _entries(output_dir):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        # the report last: without it, the folder would not be taken for a complete one
        for entry in sorted(new.iterdir(), key=lambda entry: entry.name == report_name):
            entry.rename(output_dir / entry.name)


def add_provenance(report: dict[str, Any], folder: Path, made_by: str) -> dict[str, Any]:
    """Return a report with the keys by which a folder is recognised later: `made_by` and `files`."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return report | {"made_by": made_by, "files": files}


def _entries(folder: Path) -> list[Path]:
    # another run may be at work in it
    return [entry for entry in folder.iterdir() if not entry.name.startswith(UNFINISHED)]


def _refuse_foreign_files(output_dir: Path, report_name: str, made_by: str) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise SViTError(f"`output_dir` is {str(output_dir)!r}, which is no folder; name a new or an empty one.")
    entries = _entries(output_dir) if output_dir.exists() else []
    files = {
        path.relative_to(output_dir).as_posix()
        for entry in entries
        for path in [entry, *entry.rglob("*")]
        if not path.is_dir()
    }
    own = _files_written_before(output_dir / report_name, made_by) | {report_name}
    if foreign := sorted(files - own):
        raise SViTError(
            f"`output_dir` is {str(output_dir)!r}, which holds {foreign[0]!r} and {len(foreign) - 1} more files that "
            f"`{made_by}` did not write. Name a new or an empty folder, or an earlier output, which is replaced."
        )


def _files_written_before(report: Path, made_by: str) -> set[str]:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # no report, or someone else's: then nothing here is ours
        return set()
    is_own = isinstance(content, dict) and content.get("made_by") == made_by
    return set(content["files"]) if is_own else set()
