# SPDX-License-Identifier: Apache-2.0
"""How kernels are started: on the device of their tensors, with block sizes from a fixed rule.

Nothing is tuned while a program runs. A tuner would time kernels in the first steps of every process, differently on
every rank, and break the capture of CUDA graphs.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch


class Tile(NamedTuple):
    """Number of tokens and channels that a program has in registers at once, and of its warps."""

    tokens: int
    channels: int
    num_warps: int


# elements of a tile; float32 and float16 are multiplied in three parts, which need registers of their own. Found by
# compiling for compute capabilities 8.0 and 9.0: four times as many make the association spill
MAX_ELEMENTS = {torch.bfloat16: 8192, torch.float16: 2048, torch.float32: 2048}
# what a tensor core multiplies at least
MIN_LENGTH = 16


def tile_of(num_tokens: int, channels: int, dtype: torch.dtype, max_channels: int, num_parts: int = 1) -> Tile:
    """Choose a tile for `num_tokens` tokens of a block of cells, with at most `max_channels` channels.

    A kernel that holds more in registers takes one of `num_parts` of the elements that the dtype allows.
    """
    block_channels = min(max(_next_power_of_2(channels), MIN_LENGTH), max_channels)
    max_elements = MAX_ELEMENTS[dtype] // num_parts
    block_tokens = min(max(_next_power_of_2(num_tokens), MIN_LENGTH), 64, max_elements // block_channels)
    return Tile(max(block_tokens, MIN_LENGTH), block_channels, 8 if block_channels > 128 else 4)


def constants_of(tile: Tile, channels: int, cell_size: Sequence[int]) -> dict[str, int]:
    """Return what a kernel over the tokens of cells is compiled for."""
    return {
        "C": channels,
        "h": cell_size[0],
        "w": cell_size[1],
        "BLOCK_T": tile.tokens,
        "BLOCK_C": tile.channels,
        "num_warps": tile.num_warps,
    }


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a kernel on the device of its first argument; an empty grid starts nothing."""
    if 0 in grid:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)


def empty_channels_last(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an uninitialised `(B, C, H, W)` on the device of another tensor, and in its dtype if none is given."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def count_cells(size: Sequence[int], cell_size: Sequence[int]) -> tuple[int, int]:
    """Return `(Gh, Gw)`, where the last cells may reach beyond the grid."""
    return ceil_div(size[0], cell_size[0]), ceil_div(size[1], cell_size[1])


def ceil_div(dividend: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-dividend // divisor)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
