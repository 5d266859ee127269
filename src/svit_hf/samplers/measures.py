# SPDX-License-Identifier: Apache-2.0
"""What is measured of a sampler on one picture. Shape letters are those of `super_tokens_svit.py`."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from svit_hf.model.cells_svit import join_cells
from svit_hf.model.super_tokens_svit import SuperTokens, gather_neighbours, is_outside, upsample_tokens


def pixel_tokens(picture: Image.Image) -> torch.Tensor:
    """Describe each pixel by the 3x3 pixels around it, each channel with mean 0 and variance 1 over the picture.

    Returns:
        Shape `(1, 27, H, W)`.
    """
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1).unsqueeze(0)
    spread, mean = torch.std_mean(pixels, dim=(2, 3), keepdim=True)
    padded = F.pad((pixels - mean) / (spread + 1e-6), (1, 1, 1, 1), mode="replicate")
    return F.unfold(padded, 3).unflatten(2, pixels.shape[-2:])


def reconstruction_error(tokens: torch.Tensor, sampled: SuperTokens, cell_size: tuple[int, int]) -> float:
    """Return how much of the tokens is lost when each becomes its share of the super tokens.

    Args:
        tokens: Shape `(B, C, H, W)`.
        sampled: Their super tokens.
        cell_size: `(h, w)` of a cell, in tokens.

    Returns:
        The length of what is lost, relative to that of the tokens less their mean: 0 is nothing, 1 what is lost if
        one super token stands for all.
    """
    lost = upsample_tokens(sampled.super_tokens, sampled.association, cell_size, tokens.shape[-2:]) - tokens
    return (lost.norm() / (tokens - tokens.mean(dim=(2, 3), keepdim=True)).norm()).item()


def regions_of(sampled: SuperTokens, cell_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Give each token of one picture to the super token that it belongs to most.

    Returns:
        Shape `(H, W)`, int64: row-major numbers of super tokens.
    """
    rows, columns = sampled.super_tokens.shape[-2:]
    grid = sampled.super_tokens.permute(0, 2, 3, 1)
    numbers = torch.arange(rows * columns, dtype=torch.float32).view(1, rows, columns, 1)
    best = sampled.association.masked_fill(is_outside(grid), -1).argmax(dim=-1, keepdim=True)  # (1, G, P, 1)
    neighbours = gather_neighbours(numbers).transpose(-2, -1).expand(-1, -1, best.shape[2], -1)  # (1, G, P, 9)
    return join_cells(neighbours.gather(-1, best), cell_size, size)[0, 0].long()


def achievable_accuracy(regions: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the share of pixels that are right if each region gets the one object that it shares most pixels with.

    Args:
        regions: Numbers of regions, `(H, W)`.
        mask: Numbers of objects, `(H, W)`; 0 is background.
    """
    num_objects = int(mask.max()) + 1
    together = torch.bincount(
        (regions * num_objects + mask).flatten(), minlength=(int(regions.max()) + 1) * num_objects
    )
    return (together.view(-1, num_objects).amax(dim=1).sum() / mask.numel()).item()


def boundary_recall(regions: torch.Tensor, mask: torch.Tensor, tolerance: int = 1) -> float:
    """Return the share of the boundaries of objects that have a boundary of regions within `tolerance` pixels.

    NaN where there are no boundaries.
    """
    wanted = _boundaries(mask)
    near = F.max_pool2d(_boundaries(regions).float()[None, None], 2 * tolerance + 1, stride=1, padding=tolerance)[0, 0]
    return (near[wanted] > 0).float().mean().item()


def _boundaries(numbers: torch.Tensor) -> torch.Tensor:
    """Mark the pixels whose right or lower neighbour has another number."""
    marked = torch.zeros_like(numbers, dtype=torch.bool)
    marked[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    marked[:-1] |= numbers[:-1] != numbers[1:]
    return marked
