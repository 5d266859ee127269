# SPDX-License-Identifier: Apache-2.0
"""Prepare images as a checkpoint's image processor does, at its size or another."""

from typing import Any

import torch
from PIL import Image

from svit_hf.errors import SViTError


class Preprocessing:
    """Image processor of Transformers that makes one tensor of one picture, at a size and crop of one's choice.

    Args:
        processor: The image processor. One with `crop_pct` (such as those of SViT and ConvNeXt) resizes and crops by
            it; one with a crop keeps the margin around it in proportion; any other stretches a picture to its size.
        image_size: Height and width of the result in pixels; the processor's own if `None`.
        crop_pct: Share of the resized picture's edge that the crop keeps; the processor's own if `None`.

    Attributes:
        shape: Shape of every result, `(C, H, W)`.

    Raises:
        SViTError: If the processor cannot do that, or not all results have one shape.
    """

    def __init__(self, processor: Any, image_size: tuple[int, int] | None = None, crop_pct: float | None = None):
        self.processor = processor
        self.arguments = _arguments(processor, image_size, crop_pct)
        pictures = [Image.new("RGB", size) for size in ((80, 60), (60, 80))]
        try:
            shapes = {tuple(self(picture).shape) for picture in pictures}
        # each image processor refuses sizes in its own way, and damaged settings fail in any
        except Exception as error:
            raise SViTError(
                f"{type(processor).__name__} does not work with {self.arguments}: {type(error).__name__}: {error}"
            ) from error
        if len(shapes) > 1:
            raise SViTError(
                f"{type(processor).__name__} makes images of different sizes, {sorted(shapes)}, which do not fit into "
                "one batch."
            )
        self.shape = shapes.pop()

    def __call__(self, image: Image.Image, sample: object = None) -> torch.Tensor:
        """Return `(C, H, W)`; the sample does not matter."""
        pixel_values: torch.Tensor = self.processor(image, return_tensors="pt", **self.arguments)["pixel_values"][0]
        return pixel_values


def _arguments(processor: Any, image_size: tuple[int, int] | None, crop_pct: float | None) -> dict[str, Any]:
    """Return the arguments that make a processor use another size and crop."""
    if hasattr(processor, "crop_pct"):
        # `size` is what comes out
        arguments: dict[str, Any] = {} if image_size is None else {"size": _size(*image_size)}
        return arguments | ({} if crop_pct is None else {"crop_pct": crop_pct})
    if getattr(processor, "do_center_crop", False):
        if image_size is None and crop_pct is None:
            return {}
        size, crop = dict(processor.size), dict(processor.crop_size)
        share = crop_pct or max(crop.values()) / max(size.values())
        height, width = image_size or (crop["height"], crop["width"])
        resized = {"height": round(height / share), "width": round(width / share)}
        if "shortest_edge" in size:
            resized = {"shortest_edge": max(resized.values())}
        return {"size": resized, "crop_size": {"height": height, "width": width}}
    if crop_pct is not None:
        raise SViTError(f"`crop_pct` is {crop_pct}, but {type(processor).__name__} does not crop.")
    return {} if image_size is None else {"size": {"height": image_size[0], "width": image_size[1]}}


def _size(height: int, width: int) -> dict[str, int]:
    return {"shortest_edge": height} if height == width else {"height": height, "width": width}


def input_format_of(processor: Any) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Return the size in pixels, `(height, width)`, and the mean and standard deviation of what a processor makes."""
    area = processor.crop_size if processor.do_center_crop and processor.crop_size else processor.size
    height, width = (area[name] if area.get(name) else area["shortest_edge"] for name in ("height", "width"))
    return (height, width), tuple(processor.image_mean), tuple(processor.image_std)
