# SPDX-License-Identifier: Apache-2.0
"""What happens to an image that a model is evaluated on: what its image processor does."""

from typing import Any

import torch
from PIL import Image

from svit_hf.data.sharding import SampleKey


class EvaluationTransform:
    """Image processor of Transformers that makes a tensor of one picture at a time, in a worker.

    Args:
        processor: The image processor of a model.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image, sample: SampleKey) -> torch.Tensor:
        """Return `(3, H, W)`, float32; nothing in it is random."""
        pixel_values: torch.Tensor = self.processor(image, return_tensors="pt")["pixel_values"]
        return pixel_values[0]


def input_format_of(processor: Any) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Return the size in pixels, `(height, width)`, and the mean and standard deviation of what a processor makes."""
    area = processor.crop_size if processor.do_center_crop and processor.crop_size else processor.size
    height, width = (area[name] if area.get(name) else area["shortest_edge"] for name in ("height", "width"))
    return (height, width), tuple(processor.image_mean), tuple(processor.image_std)
