# SPDX-License-Identifier: Apache-2.0
"""Pictures of a folder, prepared for the model: what an int8 program is calibrated with, and compared on."""

from pathlib import Path

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor

from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.folders import picture_files
from svit_hf.errors import SViTError


def read_pictures(folder: Path, image_processor: BaseImageProcessor, num_pictures: int) -> torch.Tensor:
    """Read pictures from a folder and those in it, evenly spread over their sorted names.

    Returns:
        Shape `(N, C, height, width)`.

    Raises:
        SViTError: If the folder holds fewer than two pictures, or one that cannot be read.
    """
    if num_pictures < 2:
        raise SViTError(f"`num_pictures` is {num_pictures}; it has to be at least 2.")
    paths = picture_files(str(folder)) if folder.is_dir() else []
    if len(paths) < 2:
        raise SViTError(f"`calibration` is {str(folder)!r}, a folder with {len(paths)} pictures; it needs at least 2.")
    places = np.linspace(0, len(paths) - 1, min(num_pictures, len(paths))).round().astype(int)
    prepared = []
    for path in (paths[place] for place in places):
        try:
            pixel_values = image_processor(decode_image(path), return_tensors="pt")["pixel_values"]
        except DecodingError as error:
            raise SViTError(f"`calibration` holds {path!r}, which cannot be read: {error}") from error
        prepared.append(pixel_values)
    return torch.cat(prepared)
