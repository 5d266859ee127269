# SPDX-License-Identifier: Apache-2.0
"""Let the attention of a trained vision transformer work on super tokens, and as it was again.

Shape letters are those of `super_tokens_svit.py`; besides, `N` tokens of an image, of which the first `R` are no
patches (class and register tokens), and `S = R + G`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.model.cells_svit import count_cells, split_into_cells
from svit_hf.model.super_tokens_svit import (
    SUPER_TOKEN_SAMPLERS,
    SuperTokenSampler,
    make_learned_sampler,
    sum_over_neighbours,
    upsample_tokens,
)
from svit_hf.other_models.layers import (
    ReplacedAttention,
    Rotation,
    attend,
    find_attentions,
    projections,
    require_own_forward,
)


Mode = Literal["kv", "both"]


class AppliedSuperTokens(ReplacedAttention):
    """Super tokens in some layers of a model, until `remove` is called or a `with` block ends.

    Args:
        attentions: The attention modules of these layers.
        patch_embedding: The convolution that turns images into patches; it tells the grid.
        cell_size: Cell of a super token, in patches.
        mode: "kv" or "both".
        sampler: A name in `SUPER_TOKEN_SAMPLERS`, or a function or module like those there.
        num_iterations: Rounds of association and averaging.
    """

    def __init__(
        self,
        attentions: Sequence[nn.Module],
        patch_embedding: nn.Module,
        cell_size: tuple[int, int],
        mode: Mode,
        sampler: str | SuperTokenSampler,
        num_iterations: int,
    ):
        super().__init__()
        self.cell_size = cell_size
        self.mode = mode
        self.sampler = sampler
        self.num_iterations = num_iterations
        self.grid_size = (0, 0)
        # nothing else sees images: the layers get a list of tokens
        self._hooks.append(patch_embedding.register_forward_hook(self._note_grid))
        for attention in attentions:
            sample = sampler if callable(sampler) else self._make_sampler(sampler, attention)
            self._replace(attention, partial(self._attend, attention, sample))

    def _make_sampler(self, name: str, attention: nn.Module) -> Any:
        weight = projections(attention)[0].weight
        learned = make_learned_sampler(name, weight.shape[1], self.cell_size)
        return SUPER_TOKEN_SAMPLERS[name] if learned is None else learned.to(weight.device)

    def _note_grid(self, module: nn.Module, inputs: object, patches: torch.Tensor) -> None:
        self.grid_size = (patches.shape[-2], patches.shape[-1])

    def _attend(
        self,
        attention: nn.Module,
        sample: Any,
        hidden_states: torch.Tensor,
        *args: object,
        position_embeddings: Rotation | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, None]:
        height, width = self.grid_size
        num_others = hidden_states.shape[1] - height * width
        others, patches = hidden_states.split([num_others, height * width], dim=1)
        grid = patches.transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        super_tokens, association = self._sample(sample, grid)
        mass = self._sum_over_patches(association, grid.new_ones(1, 1, height, width)).flatten(1)  # (B, G)
        pooled = torch.cat([others, super_tokens.flatten(2).transpose(1, 2)], dim=1)  # (B, S, C)
        # a super token stands for as many keys as it has mass
        bias = F.pad(mass.clamp(min=1e-12).log(), (num_others, 0)).to(hidden_states.dtype)
        turn = None if position_embeddings is None else self._mean_rotation(position_embeddings, association, mass)
        if self.mode == "kv":
            return attend(attention, hidden_states, pooled, bias, position_embeddings, turn), None
        attended = attend(attention, pooled, pooled, bias, turn, turn)
        others, attended = attended.split([num_others, mass.shape[1]], dim=1)
        attended = attended.transpose(1, 2).unflatten(2, super_tokens.shape[-2:])
        spread = upsample_tokens(attended, association, self.cell_size, (height, width))
        return torch.cat([others, spread.flatten(2).transpose(1, 2)], dim=1), None

    def _sample(self, sample: Any, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_cells = count_cells(grid.shape[-2:], self.cell_size)
        missing = [
            count * cell - length
            for count, cell, length in zip(num_cells, self.cell_size, grid.shape[-2:], strict=True)
        ]
        if any(missing):
            # zeros, which no patch of a trained network is like, would take part in the means
            grid = torch.cat([grid, grid[:, :, -1:].expand(-1, -1, missing[0], -1)], dim=2)
            grid = torch.cat([grid, grid[..., -1:].expand(-1, -1, -1, missing[1])], dim=3)
        super_tokens, association = sample(grid, self.cell_size, self.num_iterations)
        return super_tokens, association

    def _sum_over_patches(self, association: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Sum what the patches of the image have, `(1, C, H, W)`, by association: `(B, Gh, Gw, C)`.

        Patches that were repeated to fill the last cells count as zeros.
        """
        cells = split_into_cells(grid.to(association.dtype), self.cell_size)  # (1, G, P, C)
        return sum_over_neighbours(association.transpose(-2, -1) @ cells, count_cells(grid.shape[-2:], self.cell_size))

    def _mean_rotation(self, rotation: Rotation, association: torch.Tensor, mass: torch.Tensor) -> Rotation:
        """Return the mean cosines and sines, each `(B, G, D)`: patches that are alike are turned so on average."""
        grids = (part.transpose(-2, -1).unflatten(-1, self.grid_size).unsqueeze(0) for part in rotation)
        cosines, sines = (
            (self._sum_over_patches(association, grid).flatten(1, 2) / mass.unsqueeze(-1).clamp(min=1e-12)).to(
                grid.dtype
            )
            for grid in grids
        )
        return cosines, sines


def apply_super_tokens(
    model: nn.Module,
    cell_size: int | tuple[int, int] = 2,
    layers: Sequence[int] | None = None,
    mode: Mode = "kv",
    sampler: str | SuperTokenSampler = "soft_masked",
    num_iterations: int = 1,
) -> AppliedSuperTokens:
    """Let layers of a vision transformer attend to super tokens, in place and without training.

    Patches are grouped by the sampler; class and register tokens stay as they are. The logarithm of the number of
    patches that a super token stands for is added to the attention to it, without which large groups would count as
    one patch. The state dict and what `save_pretrained` writes stay as they are. Layers with super tokens return no
    attention weights, and do not look at an `attention_mask`.

    Args:
        model: ViT, DeiT, DINOv2 (with or without registers), DINOv3 or SigLIP of Transformers, with any head.
        cell_size: Cell of a super token, in patches, one int or a `(height, width)` pair. Any grid of patches will do.
        layers: Numbers of the layers, from 0; all by default. None of them, `()`, changes nothing.
        mode: "kv": all tokens attend to super tokens. "both": super tokens attend to each other, and each patch gets
            its share of what they found.
        sampler: A name in `SUPER_TOKEN_SAMPLERS`, or a function or module like those there. One that learns starts
            untrained, and is not saved.
        num_iterations: Rounds of association and averaging, at least 1.

    Returns:
        The handle, by which they are removed again.

    Raises:
        ValueError: If an argument cannot be used; the message names it.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTModel
        >>> from svit_hf import apply_super_tokens
        >>> model = ViTModel(ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=4))
        >>> with apply_super_tokens(model, cell_size=2, layers=[2, 3], mode="both"):
        ...     states = model(torch.randn(1, 3, 224, 224)).last_hidden_state
        >>> states.shape
        torch.Size([1, 197, 48])

    Source: the bias by mass is the proportional attention of "Token Merging" (Bolya et al., arXiv 2210.09461),
    section 3.
    """
    height, width = (cell_size, cell_size) if isinstance(cell_size, int) else cell_size
    if min(height, width) < 1:
        raise ValueError(f"`cell_size` is {cell_size}; it has to be at least 1 patch.")
    if mode not in ("kv", "both"):
        raise ValueError(f"`mode` is {mode!r}; allowed are 'kv' and 'both'.")
    if not callable(sampler) and sampler not in SUPER_TOKEN_SAMPLERS:
        raise ValueError(f"`sampler` is {sampler!r}; allowed are {sorted(SUPER_TOKEN_SAMPLERS)}.")
    if num_iterations < 1:
        raise ValueError(f"`num_iterations` is {num_iterations}; it has to be at least 1.")
    attentions, patch_embedding = find_attentions(model)
    layers = range(len(attentions)) if layers is None else layers
    if not set(layers) <= set(range(len(attentions))):
        raise ValueError(f"`layers` is {list(layers)}; the model has layers from 0 to {len(attentions) - 1}.")
    chosen = [attentions[layer] for layer in sorted(set(layers))]
    require_own_forward(chosen, "layers")
    return AppliedSuperTokens(chosen, patch_embedding, (height, width), mode, sampler, num_iterations)
