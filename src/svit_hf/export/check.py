# SPDX-License-Identifier: Apache-2.0
"""The check built into every export: the program that was written, loaded again, against the model it came from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from svit_hf.model.configuration_svit import SViTConfig


# from images, (B, C, height, width), to logits, (B, num_labels)
Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """Difference between the logits of a program and those of the model it came from.

    Attributes:
        shapes: Shapes of the batches that both were run on, `(B, C, height, width)`.
        num_images: Images in these batches.
        max_difference: Largest absolute difference of two logits.
        mean_difference: Mean absolute difference.
        max_logit: Largest absolute logit of the model.
        mean_logit: Mean absolute logit of the model.
        unchanged_top1: Share of the images with the same most likely class.
    """

    shapes: list[list[int]]
    num_images: int
    max_difference: float
    mean_difference: float
    max_logit: float
    mean_logit: float
    unchanged_top1: float

    @property
    def max_error(self) -> float:
        """The largest difference, absolute or as a share of the largest logit, whichever is more.

        An untrained model has logits of a few thousandths, of which an absolute bound alone would not ask anything.
        """
        return self.max_difference / min(1.0, self.max_logit) if self.max_logit else self.max_difference

    @property
    def mean_error(self) -> float:
        """The mean difference as a share of the mean logit."""
        return self.mean_difference / self.mean_logit if self.mean_logit else self.mean_difference


def compare(program: Predict, model: Predict, batches: Iterable[torch.Tensor]) -> Comparison:
    """Run a program and a model on the same batches; a NaN on either side makes every difference NaN."""
    shapes, found, expected = [], [], []
    for pixel_values in batches:
        shapes.append(list(pixel_values.shape))
        found.append(program(pixel_values).double())
        expected.append(model(pixel_values).double())
        assert found[-1].shape == expected[-1].shape, f"{found[-1].shape} instead of {expected[-1].shape}"
    logits, wanted = torch.cat(found), torch.cat(expected)
    difference = (logits - wanted).abs()
    return Comparison(
        shapes=shapes,
        num_images=len(logits),
        max_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        max_logit=wanted.abs().max().item(),
        mean_logit=wanted.abs().mean().item(),
        unchanged_top1=(logits.argmax(dim=1) == wanted.argmax(dim=1)).double().mean().item(),
    )


def smallest_size(config: SViTConfig, format: str) -> int:
    """Return the smallest height and width, in pixels, that an exported program takes.

    ONNX takes what the model takes, one token of its last stage. `torch.export` takes an axis of length one for
    another graph, so that its programs, and OpenVINO's made of these, need more than one super token in every stage.
    """
    strides = [4 * 2**stage for stage in range(config.num_stages)]
    if format == "onnx":
        return strides[-1]
    return 1 + max(stride * max(cell) for stride, cell in zip(strides, config.cell_sizes, strict=True))


def batches_of_many_sizes(config: SViTConfig, size: tuple[int, int], least: int, seed: int = 0) -> list[torch.Tensor]:
    """Return random batches of different lengths and sizes: the model's own, odd ones, and the smallest.

    Returns:
        Batches, shape `(B, num_channels, height, width)`, normally distributed.
    """
    height, width = size
    # the second and third are multiples of no cell and of no stride
    shapes: Sequence[tuple[int, int, int]] = [
        (1, height, width),
        (2, height + 5, max(width - 27, least)),
        (3, max(height - 11, least), width + 2),
        (2, least, least),
    ]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, config.num_channels, *size, generator=generator) for batch, *size in shapes]
