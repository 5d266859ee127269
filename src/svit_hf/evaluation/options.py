# SPDX-License-Identifier: Apache-2.0
"""What `svit-hf evaluate` and `svit-hf predict` both ask for; checked when it is said."""

import os
from dataclasses import dataclass, field, replace
from typing import Literal

from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError


Precision = Literal["fp32", "bf16", "fp16"]
WeightsName = Literal["raw", "ema"]


@dataclass(kw_only=True)
class InputOptions:
    """How a model is given images.

    Args:
        data: Where the images are, and how they are read.
        split: The split to read; wins over `data.eval_split`.
        image_size: Edge, or height and width, of what the model sees, in pixels; its own if not given.
        crop_pct: Share of the resized picture's edge that the crop keeps; that of the model if not given.
        batch_size: Images per batch of each process.
        precision: Precision of the forward pass.
    """

    data: DataOptions = field(default_factory=DataOptions)
    split: str | None = None
    image_size: int | tuple[int, int] | None = None
    crop_pct: float | None = None
    batch_size: int = 64
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        edges = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if any(edge is not None and edge < 1 for edge in edges):
            raise SViTError(f"`image_size` is {self.image_size}; it has to be at least 1.")
        require_positive(batch_size=self.batch_size)


def data_options(data: str | os.PathLike[str] | DataOptions, split: str | None) -> DataOptions:
    """Return the options of a data set, which is named by its path or by them, for a split that wins over theirs."""
    options = data if isinstance(data, DataOptions) else DataOptions(path=os.fspath(data))
    return options if split is None else replace(options, eval_split=split)


def require_positive(**values: int) -> None:
    """Refuse counts below 1.

    Raises:
        SViTError: If one is; the message names it.
    """
    for name, value in values.items():
        if value < 1:
            raise SViTError(f"`{name}` is {value}; it has to be at least 1.")
