# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: written as a whole or not at all, checked before use, rotated.

    RUN/checkpoints/step-00001234/
        raw/ ema/        folders that Transformers loads: weights, config, image processor
        optimizer.pt     state of the optimizer, and of the loss scale under fp16
        progress.json    where training is
        manifest.json    size and SHA-256 of every other file; written last
    RUN/best/            the same of the best evaluation, without the optimizer

A folder is made under another name and renamed when everything in it is on the disk. What training needs is all there:
there is no state of a random generator or of a data loader to save (see `svit_hf.data` and `loop.py`).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from svit_hf.errors import SViTError


CHECKPOINTS, BEST = "checkpoints", "best"
RAW, EMA, OPTIMIZER, PROGRESS, MANIFEST = "raw", "ema", "optimizer.pt", "progress.json", "manifest.json"
UNFINISHED = ".tmp-"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class FoundCheckpoint:
    """Hold which checkpoint to continue from, and which newer ones were passed over.

    Attributes:
        folder: The newest valid checkpoint; none if there is none.
        skipped: Newer folders, with the reason why each cannot be used.
    """

    folder: Path | None
    skipped: tuple[tuple[Path, str], ...] = ()


def checkpoint_folder(run_dir: Path, update: int) -> Path:
    """Return the folder of the checkpoint after `update` updates."""
    return run_dir / CHECKPOINTS / f"step-{update:08d}"


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a checkpoint folder; an earlier one of the same name is replaced.

    Args:
        folder: What to make.
        write: Puts everything but the manifest into the folder that it is given.

    Raises:
        SViTError: If a file cannot be written; earlier checkpoints stay as they are.
    """
    unfinished = folder.with_name(UNFINISHED + folder.name)
    try:
        # left there by a run that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        files = {path.relative_to(unfinished).as_posix(): path for path in _files(unfinished)}
        for path in files.values():
            _flush(path)
        content = {name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}
        manifest = unfinished / MANIFEST
        manifest.write_text(json.dumps({"files": content}, indent=2) + "\n", encoding="utf-8")
        for path in (manifest, *{path.parent for path in files.values()}, unfinished):
            _flush(path)
        _put_in_place(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise SViTError(
            f"the checkpoint {str(folder)!r} cannot be written: {error}. Earlier ones stand; make room, and continue "
            "with the same command."
        ) from error


def problem_of(folder: Path) -> str | None:
    """Say why a checkpoint cannot be used; nothing if it can."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it has no manifest.json, so it was not finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest.json cannot be read: {error}"
    for name, expected in content.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} is damaged: its SHA-256 is not that of the manifest"
    if missing := {PROGRESS, OPTIMIZER} - content.keys():
        return f"{', '.join(sorted(missing))} is not part of it"
    return None


def find_checkpoint(run_dir: Path, resume: str) -> FoundCheckpoint:
    """Find what to continue from.

    Args:
        run_dir: Folder of the run.
        resume: `auto` for the newest valid checkpoint of the run, if there is one; `never` for none; or a checkpoint's
            folder.

    Raises:
        SViTError: If `resume` is a folder that is no valid checkpoint, or is `never` and there are checkpoints, which
            the run would replace.
    """
    folders = checkpoints_of(run_dir)
    if resume == "never":
        if folders:
            raise SViTError(
                f"`resume` is 'never', but {str(run_dir)!r} holds checkpoints up to {folders[-1].name}; name another "
                "`output_dir`, or leave `resume` at 'auto' to continue."
            )
        return FoundCheckpoint(None)
    if resume != "auto":
        if problem := problem_of(Path(resume)):
            raise SViTError(f"`resume` is {resume!r}, which is no valid checkpoint: {problem}.")
        return FoundCheckpoint(Path(resume))
    skipped: list[tuple[Path, str]] = []
    for folder in reversed(folders):
        problem = problem_of(folder)
        if problem is None:
            return FoundCheckpoint(folder, tuple(skipped))
        skipped.append((folder, problem))
    if skipped:
        reasons = "; ".join(f"{folder.name}: {problem}" for folder, problem in skipped)
        raise SViTError(f"`output_dir` is {str(run_dir)!r}, whose checkpoints are all damaged: {reasons}.")
    return FoundCheckpoint(None)


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, valid or not, oldest first; unfinished ones have other names."""
    folders = [path for path in (run_dir / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def remove_old_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and whatever a killed run left unfinished."""
    for folder in checkpoints_of(run_dir)[:-keep]:
        # under another name first: half a checkpoint must not look like one
        doomed = folder.with_name(UNFINISHED + folder.name)
        folder.rename(doomed)
    for folder in (run_dir / CHECKPOINTS).glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder)


def keep_as_best(folder: Path, run_dir: Path) -> Path:
    """Make `RUN/best` of a checkpoint, without its optimizer: hard links where the disk has them."""
    unfinished = run_dir / f"{UNFINISHED}{BEST}"
    shutil.rmtree(unfinished, ignore_errors=True)
    for path in _files(folder):
        name = path.relative_to(folder)
        if name.as_posix() in (OPTIMIZER, MANIFEST):
            continue
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(path, unfinished / name)
    _put_in_place(unfinished, run_dir / BEST)
    return run_dir / BEST


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a finished folder; one that is there already is moved out of the way first."""
    if folder.exists():
        old = folder.with_name(f"{UNFINISHED}old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        os.replace(unfinished, folder)  # noqa: PTH105 - the word says that it is atomic
        shutil.rmtree(old)
    else:
        os.replace(unfinished, folder)  # noqa: PTH105
    _flush(folder.parent)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # another file system, or one without links
        shutil.copyfile(source, target)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
