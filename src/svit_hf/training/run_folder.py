# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: one run at a time, and nothing but runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svit_hf.errors import SViTError


RECIPE, LOCK = "recipe.json", ".lock"


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
