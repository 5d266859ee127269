# SPDX-License-Identifier: Apache-2.0
"""Find the images to predict: picture files, folders and globs of them, pictures in memory, or a data set."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from svit_hf.data.folders import picture_files
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import UNLABELLED, ImageSource, IndexedSource, Row
from svit_hf.errors import SViTError
from svit_hf.evaluation.classifier import processes
from svit_hf.evaluation.options import data_options


Picture = str | os.PathLike[str] | Image.Image
Images = Picture | Sequence[Picture] | DataOptions | ImageSource


class Pictures(IndexedSource):
    """Pictures without labels, in their order.

    Args:
        pictures: Paths of files, or pictures in memory, by their names.
    """

    def __init__(self, pictures: Mapping[str, str | Image.Image]):
        super().__init__("pictures", (), {"pictures": len(pictures)})
        self.description = f"{len(pictures)} pictures"
        self.names = tuple(pictures)
        self.pictures = tuple(pictures.values())

    def locate(self, sample_id: int) -> tuple[str, int]:
        """Return the name of a picture, and row 0."""
        return self.names[sample_id], 0

    def row(self, sample_id: int) -> Row:
        """Return a picture."""
        picture = self.pictures[sample_id]
        return Row(sample_id, picture if isinstance(picture, str) else _encode(picture), UNLABELLED)

    def digest(self) -> str:
        """Return what tells these pictures from others: the names of files, the pixels of pictures in memory."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(f"{picture}\n".encode() if isinstance(picture, str) else _encode(picture))
        return digest.hexdigest()


def open_images(images: Images, options: DataOptions | None = None, split: str | None = None) -> ImageSource:
    """Find images, on one process first; labels are not read, and need not be there.

    Args:
        images: Picture files, folders that have pictures somewhere in them, globs, or pictures in memory; or one data
            set, as `data.path` would name it, its options, or an opened source.
        options: How a data set is read.
        split: The split of a data set; wins over the one of the options.

    Raises:
        SViTError: If there are none.
    """
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, DataOptions):
        return _open_data_set(images, split)
    options = options or DataOptions()
    given = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else images
    # by name: a file that is named twice is predicted once
    pictures: dict[str, str | Image.Image] = {}
    for number, one in enumerate(given):
        if isinstance(one, Image.Image):
            pictures[f"picture {number}"] = one
        elif found := picture_files(os.fspath(one)):
            pictures |= zip(found, found, strict=True)
        elif len(given) == 1:
            return _open_data_set(replace(options, path=os.fspath(one)), split)
        else:
            raise SViTError(f"`sources` has {one!r}, where there are no pictures; a data set has to be the only one.")
    if not pictures:
        raise SViTError("`sources` is empty; name pictures, a folder, a glob, or a data set.")
    source = Pictures(pictures)
    source.limits = options.limits
    return source


def _open_data_set(options: DataOptions, split: str | None) -> ImageSource:
    with processes().main_process_first():
        return open_source(data_options(options, split), "eval", labelled=False)


def _encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    # of the modes that PNG does not have: CMYK, YCbCr and others
    picture = picture if picture.mode in ("1", "I", "I;16", "L", "LA", "P", "RGB", "RGBA") else picture.convert("RGB")
    picture.save(file, "png")
    return file.getvalue()
