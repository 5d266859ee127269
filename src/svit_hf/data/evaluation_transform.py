# SPDX-License-Identifier: Apache-2.0
"""What happens to an image that a model is evaluated on: what its image processor does."""

from typing import Any

import torch
from PIL import Image

from svit_hf.data.sharding import SampleKey


class EvaluationTransform:
    """Make a tensor of a picture as an image processor of Transformers does, one by one, in a worker.

    Args:
        processor: The image processor of a model.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image, sample: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32; nothing in it is random."""
        pixel_values: torch.Tensor = self.processor(image, return_tensors="pt")["pixel_values"]
        return pixel_values[0]
