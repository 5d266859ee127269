# SPDX-License-Identifier: Apache-2.0
"""Find the images to predict: picture files, folders and globs of them, or a data set."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import UNLABELLED, ImageSource, Row
from svit_hf.errors import SViTError


class PictureFiles(ImageSource):
    """Give picture files, which have no labels, in their order.

    Args:
        files: Paths of the files.
    """

    is_streaming = False

    def __init__(self, files: Sequence[str]):
        super().__init__("picture files", (), {"files": len(files)})
        self.description = f"{len(files)} picture files"
        self.files = tuple(files)

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the file, and row 0."""
        return self.files[sample_id], 0

    def rows(self, shard: int, first: int, stop: int) -> Iterator[Row]:
        """Yield pictures that follow each other."""
        for sample_id in range(first, stop):
            yield Row(sample_id, self.files[sample_id], UNLABELLED)


def open_images(sources: Sequence[str], options: DataOptions) -> ImageSource:
    """Find images; labels are not read, and need not be there.

    Args:
        sources: Picture files, folders that have pictures somewhere in them, globs; or one data set, as `data.path`
            would name it.
        options: How a data set is read.

    Raises:
        SViTError: If there are none.
    """
    files: list[str] = []
    for source in sources:
        found = _picture_files(source)
        if found:
            files += found
        elif len(sources) == 1:
            return open_source(replace(options, path=source), "eval", labelled=False)
        else:
            raise SViTError(
                f"`sources` has {source!r}, where there are no pictures; a data set has to be the only one."
            )
    if not files:
        raise SViTError("`sources` is empty; name pictures, a folder, a glob, or a data set.")
    # a picture that is named twice is predicted once
    return PictureFiles(list(dict.fromkeys(files)))


def _picture_files(source: str) -> list[str]:
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    path = Path(source)
    if path.is_dir():
        found = [str(file) for file in path.rglob("*")]
    else:
        # Path.glob takes no absolute patterns
        found = [source] if path.is_file() else glob.glob(source, recursive=True)  # noqa: PTH207
    return sorted(file for file in found if Path(file).suffix.lower() in suffixes and Path(file).is_file())
