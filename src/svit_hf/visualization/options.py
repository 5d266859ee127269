# SPDX-License-Identifier: Apache-2.0
"""What is drawn of each picture."""

from dataclasses import dataclass
from typing import Literal

from svit_hf.errors import SViTError
from svit_hf.option_fields import check_options, option


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
            Later ones are closer to the answer, earlier ones are finer; by default the last one with 3x3 places.
        edge: Longer edge of a drawing, in pixels.

    Raises:
        SViTError: If the point is outside of the picture, or there is nothing to draw.
    """

    point: tuple[float, float] = option((0.5, 0.5), at_least=0, at_most=1)
    layers: Layers = "last"
    parts: tuple[Part, ...] = PARTS
    label: str | None = None
    reliance_stage: int | None = None
    edge: int = option(EDGE, at_least=1)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.parts:
            raise SViTError(f"`parts` is empty; there are {', '.join(PARTS)}.")
