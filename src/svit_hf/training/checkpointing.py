# SPDX-License-Identifier: Apache-2.0
"""The folder of a run, which one run has at a time, and its checkpoints: whole or not there, checked, rotated.

    RUN/checkpoints/step-00001234/
        raw/ ema/        folders that Transformers loads: weights, config, image processor
        optimizer.pt     state of the optimizer, and of the loss scale under fp16; projections for a teacher's features
        progress.json    where training is
        manifest.json    size and SHA-256 of every other file
    RUN/best/            the same of the best evaluation, without the optimizer
    RUN/set_aside/       what a run left behind that went on from an older checkpoint, or as another training

What training needs is all there: there is no state of a random generator or of a data loader to save (see
`svit_hf.data` and `loop.py`).
"""

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svit_hf.errors import SViTError
from svit_hf.files import link_or_copy, whole_folder


CHECKPOINTS, BEST, SET_ASIDE = "checkpoints", "best", "set_aside"
RECIPE, LOCK = "recipe.json", ".lock"
RAW, EMA, OPTIMIZER, PROGRESS, MANIFEST = "raw", "ema", "optimizer.pt", "progress.json", "manifest.json"
WEIGHTS = "model.safetensors"
_NAME = re.compile(r"step-(\d{8,})")
# endings of hidden names: what is about to be replaced, and whatever can go
_OLD, _TEMPORARY = ".old.tmp", ".tmp"


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest valid checkpoint, and newer folders with the reason why each cannot be used."""

    folder: Path | None
    skipped: tuple[tuple[Path, str], ...] = ()


def checkpoint_folder(run_dir: Path, update: int) -> Path:
    """Return the folder of the checkpoint after `update` updates."""
    return run_dir / CHECKPOINTS / f"step-{update:08d}"


@contextmanager
def new_checkpoint(folder: Path) -> Iterator[Path]:
    """Give a folder to be filled with everything but the manifest; an earlier checkpoint of the name is replaced.

    Raises:
        SViTError: If a file cannot be written; earlier checkpoints stay as they are.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
        with replaced_folder(folder) as unfinished:
            yield unfinished
            files = {path.relative_to(unfinished).as_posix(): path for path in _files(unfinished)}
            content = {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in files.items()}
            (unfinished / MANIFEST).write_text(json.dumps({"files": content}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SViTError(
            f"the checkpoint {str(folder)!r} cannot be written: {error}. Earlier ones stand; continue with the same "
            "command when it can."
        ) from error


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder`, if the block ends well, as a whole.

    A process that is killed at the worst moment leaves the earlier folder under another name; `sweep` puts it back.
    """
    old = folder.with_name(f".{folder.name}{_OLD}")
    try:
        with whole_folder(folder) as temporary:
            yield temporary
            if folder.exists():
                folder.rename(old)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sweep(run_dir: Path) -> None:
    """Remove what a run that was killed left unfinished; no other run may be at work in the folder."""
    for parent in (run_dir, run_dir / CHECKPOINTS):
        for old in parent.glob(f".*{_OLD}"):
            folder = parent / old.name.removeprefix(".").removesuffix(_OLD)
            if not folder.exists():
                old.rename(folder)
        for path in parent.glob(f".*{_TEMPORARY}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def problem_of(folder: Path) -> str | None:
    """Return why a checkpoint cannot be used; nothing if it can."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
        content = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return "it has no manifest.json, so it was not finished"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest.json cannot be read: {error}"
    for name, (size, sha256) in content.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256_of(path) != sha256:
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
    return sorted(folders, key=update_of)


def update_of(folder: Path) -> int:
    """Return the number of updates before a checkpoint."""
    return int(folder.name.removeprefix("step-"))


def remove_old_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in checkpoints_of(run_dir)[:-keep]:
        # under another name first: half a checkpoint must not look like one
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}{_TEMPORARY}")))


def set_aside_newer(run_dir: Path, update: int) -> list[Path]:
    """Set aside the checkpoints after an update, which belong to a future that was given up, and return them."""
    newer = [folder for folder in checkpoints_of(run_dir) if update_of(folder) > update]
    for folder in newer:
        set_aside(folder, run_dir)
    return newer


def set_aside(folder: Path, run_dir: Path) -> None:
    """Move a folder of a run to where nothing looks for it."""
    target = run_dir / SET_ASIDE / folder.name
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def keep_as_best(folder: Path, run_dir: Path) -> dict[str, str]:
    """Make `RUN/best` of a checkpoint, without its optimizer: hard links where the disk has them.

    Returns:
        The SHA-256 of the weights, by their name.
    """
    with replaced_folder(run_dir / BEST) as best:
        for path in _files(folder):
            name = path.relative_to(folder)
            if name.as_posix() not in (OPTIMIZER, MANIFEST):
                (best / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, best / name)
    return digests_of(run_dir / BEST)


def restore_best(run_dir: Path, best: Mapping[str, Any] | None, checkpoint: Path) -> bool:
    """Make sure that `RUN/best` has the weights that a checkpoint calls the best; if nothing has, set it aside.

    Args:
        run_dir: Folder of the run.
        best: What the checkpoint says: `update` and `sha256` among others, or nothing.
        checkpoint: The checkpoint, of this run or another.

    Returns:
        Whether it has them.
    """
    if best is not None and (digests := best.get("sha256")):
        if digests_of(run_dir / BEST) == digests:
            return True
        for run in (run_dir, checkpoint.parent.parent):
            for folder in (checkpoint_folder(run, best["update"]), run / BEST):
                if digests_of(folder) == digests:
                    keep_as_best(folder, run_dir)
                    return True
    if (run_dir / BEST).exists():
        set_aside(run_dir / BEST, run_dir)
    return best is None


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights in a checkpoint or a run's best, by their name."""
    files = {name: folder / name / WEIGHTS for name in (RAW, EMA)}
    return {name: sha256_of(file) for name, file in files.items() if file.is_file()}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def locked_folder(run_dir: Path) -> Iterator[None]:
    """Make the folder of a run, and keep every other run out of it until the block ends.

    The lock is the system's, so that it goes with the process, however that ends, and is not the workers' to keep. A
    folder that was made and stays empty is removed.

    Raises:
        SViTError: If the folder holds other things than a run, cannot be made, or another run is at work in it.
    """
    if run_dir.exists() and not _is_for_runs(run_dir):
        raise SViTError(
            f"`output_dir` is {str(run_dir)!r}, which holds other things than a run; name a new or an empty folder."
        )
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # "a": a lock needs a file that can be written to, and others may be reading this one
        file = (run_dir / LOCK).open("a")
    except OSError as error:
        raise SViTError(f"`output_dir` is {str(run_dir)!r}, which cannot be written: {error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise SViTError(
                f"`output_dir` is {str(run_dir)!r}, where another run is at work; wait for its end, or name another "
                "folder."
            ) from error
        except OSError:
            # a file system without locks: one run at a time is up to the user there
            pass
        try:
            yield
        finally:
            if is_new and [path.name for path in run_dir.iterdir()] == [LOCK]:
                (run_dir / LOCK).unlink()
                run_dir.rmdir()


def _is_for_runs(run_dir: Path) -> bool:
    if not run_dir.is_dir():
        return False
    return (run_dir / RECIPE).exists() or not any(path.name != LOCK for path in run_dir.iterdir())
