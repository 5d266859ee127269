# SPDX-License-Identifier: Apache-2.0
"""What is drawn of each picture."""

from dataclasses import dataclass
from typing import Literal

from svit_hf.errors import SViTError


Layers = Literal["last", "all"]
Part = Literal["super_tokens", "attention", "classifier"]
# the longer one of a drawing, in pixels
EDGE = 288
PARTS: tuple[Part, ...] = ("super_tokens", "attention", "classifier")


@dataclass(kw_only=True)
class DrawingOptions:
    """What is drawn of each picture.

    Args:
        point: What looks: x and y as shares of width and height, from the upper left corner.
        layers: The last layer of every stage that has super tokens (of every stage, if none has), or all layers.
        parts: What to draw; `classifier` needs the extra `visualize`.
        label: The class whose reasons are shown; the likeliest one of each picture if not given.
        reliance_stage: The stage whose map says what the classifier relies on, from 1, or from the end if negative.
            The last one is closest to the answer, earlier ones are finer.
        edge: Longer edge of a drawing, in pixels.

    Raises:
        SViTError: If the point is outside of the picture, or there is nothing to draw.
    """

    point: tuple[float, float] = (0.5, 0.5)
    layers: Layers = "last"
    parts: tuple[Part, ...] = PARTS
    label: str | None = None
    reliance_stage: int = -1
    edge: int = EDGE

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.point):
            raise SViTError(f"`point` is {self.point}; x and y have to be shares of width and height, from 0 to 1.")
        if self.edge < 1:
            raise SViTError(f"`edge` is {self.edge}; it has to be at least 1.")
        if not self.parts:
            raise SViTError(f"`parts` is empty; there are {', '.join(PARTS)}.")
