# SPDX-License-Identifier: Apache-2.0
"""Let a trained vision transformer go on with super tokens in place of patches that are like them.

Shape letters are those of `super_tokens_svit.py`; besides, `N` tokens of an image, of which the first `R` are no
patches (class and register tokens), and `S` groups of tokens, most of them of one.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.model.cells_svit import count_cells, join_cells, split_into_cells
from svit_hf.model.super_tokens_svit import gather_neighbours, is_outside
from svit_hf.other_models.layers import (
    ReplacedAttention,
    Rotation,
    attend,
    find_attentions,
    find_layers,
    find_stages,
    projections,
    require_own_forward,
)


class Groups(NamedTuple):
    """Groups of the tokens of some images.

    Attributes:
        numbers: The group of each token, `(B, N)`.
        cells: For each patch that was merged the cell whose seed it went to, -1 for others, `(B, H*W)`.
        masses: How many tokens are in each group, `(B, S, 1)`.
        differences: Of each token and the mean of its group, when they were merged, `(B, N, C)`.
        rotation: The means of what DINOv3 turns patches by, each `(B, S - R, D)`.
    """

    numbers: torch.Tensor
    cells: torch.Tensor
    masses: torch.Tensor
    differences: torch.Tensor
    rotation: Rotation | None


class MergedPatches(ReplacedAttention):
    """Super tokens in place of patches, until `remove` is called or a `with` block ends.

    Args:
        attentions: The attention modules of all layers.
        layers: The layers.
        stages: Numbers of the layers whose outputs have to be those of all patches, as the last one's are.
        patch_embedding: The convolution that turns images into patches; it tells the grid.
        shares: After which layer which share of the patches is merged.
        cell_size: Cell of a super token, in patches.
    """

    def __init__(
        self,
        attentions: list[Any],
        layers: list[nn.Module],
        stages: list[int],
        patch_embedding: nn.Module,
        shares: Mapping[int, float],
        cell_size: tuple[int, int],
    ):
        super().__init__()
        self.shares = dict(shares)
        self.cell_size = cell_size
        # Transformers collects hidden states by hooks that may be there already: these have to come before
        self._hooks = [
            patch_embedding.register_forward_hook(self._begin),
            layers[-1].register_forward_hook(self._end, prepend=True),
        ]
        for number in {*stages} & {*range(min(shares) + 1, len(layers) - 1)}:
            self._hooks += [
                layers[number].register_forward_hook(self._show_all, prepend=True),
                layers[number + 1].register_forward_pre_hook(self._go_on),
            ]
        for number, share in shares.items():
            keys = projections(attentions[number])[1]
            merge = partial(self._merge, share, attentions[number].config.num_attention_heads)
            self._hooks += [
                keys.register_forward_hook(self._note_keys),
                layers[number + 1].register_forward_pre_hook(merge, with_kwargs=True),
            ]
        for attention in attentions[min(shares) + 1 :]:
            self._replace(attention, partial(self._attend, attention))

    def _begin(self, module: nn.Module, inputs: object, patches: torch.Tensor) -> None:
        """Note the grid of new images, whose patches are all on their own."""
        self._size = (patches.shape[-2], patches.shape[-1])
        self._groups: Groups | None = None

    def _note_keys(self, module: nn.Module, inputs: object, keys: torch.Tensor) -> None:
        self._keys: torch.Tensor | None = keys.detach()  # (B, S, A*D)

    def _merge(
        self, share: float, num_heads: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the tokens that a layer gets by the means of their groups.

        Raises:
            ValueError: If layers are to be computed a second time, when it is no longer known what was merged.
        """
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise ValueError(
                "`gradient_checkpointing` is on, which does not go with merged patches; call "
                "`gradient_checkpointing_disable()` of the model, or remove what merges them."
            )
        before, tokens = self._groups, self._ungroup(args[0])  # (B, N, C)
        assert self._keys is not None
        keys = self._keys.unflatten(2, (num_heads, -1)).mean(2)
        keys = keys if before is None else _gather(keys, before.numbers)  # (B, N, D)
        num_patches, num_cells = math.prod(self._size), math.prod(count_cells(self._size, self.cell_size))
        num_others = tokens.shape[1] - num_patches
        num_merged = tokens.shape[1] - args[0].shape[1]
        num_new = min(round(share * num_patches), num_patches - num_cells - num_merged)
        num_groups = args[0].shape[1] - num_new
        grid = keys[:, num_others:].transpose(1, 2).unflatten(2, self._size)
        cells = choose_patches(grid, self.cell_size, num_new, None if before is None else before.cells)
        of_patches = number_groups(cells, self._size, self.cell_size)
        of_others = torch.arange(num_others, device=cells.device).expand(len(cells), -1)
        numbers = torch.cat([of_others, num_others + of_patches], dim=1)
        masses = _sum_of_groups(tokens.new_ones(*tokens.shape[:2], 1), numbers, num_groups)
        means = _sum_of_groups(tokens, numbers, num_groups) / masses
        rotation = kwargs.get("position_embeddings")
        if rotation is not None:
            cosines, sines = (
                _sum_of_groups(part.expand(len(cells), -1, -1), of_patches, num_groups - num_others)
                / masses[:, num_others:]
                for part in rotation
            )
            rotation = cosines, sines
        self._groups = Groups(numbers, cells, masses, tokens - _gather(means, numbers), rotation)
        return (means, *args[1:]), kwargs

    def _ungroup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Give each token what its group is now, `(B, S, C)`, and what set it apart from its group."""
        if self._groups is None:
            return tokens
        return _gather(tokens, self._groups.numbers) + self._groups.differences

    def _show_all(self, module: nn.Module, inputs: object, tokens: torch.Tensor) -> torch.Tensor:
        self._fewer: torch.Tensor | None = tokens
        return self._ungroup(tokens)

    def _go_on(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, self._fewer = self._fewer, None
        return (tokens, *inputs[1:])

    def _end(self, module: nn.Module, inputs: object, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self._ungroup(tokens)
        # what is not kept needs no memory, and does not keep models from being copied
        self._groups = self._keys = None
        return tokens

    def _attend(
        self,
        attention: nn.Module,
        hidden_states: torch.Tensor,
        *args: object,
        position_embeddings: Rotation | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, None]:
        assert self._groups is not None
        turn = self._groups.rotation
        return attend(attention, hidden_states, hidden_states, self._groups.masses[..., 0].log(), turn, turn), None


def merge_into_super_tokens(
    model: nn.Module, shares: Mapping[int, float] | None = None, cell_size: int | tuple[int, int] = 2
) -> MergedPatches:
    """Let a vision transformer go on with fewer tokens, and give all patches back after its last layer.

    The first patch of every cell is the seed of a super token. After the layers that `shares` names, the patches
    whose keys are most like those of one of the nine seeds around them are merged into it, as many as the share says,
    whatever the image; the others stay. From there on the model computes super tokens in place of patches, and the
    logarithm of how many a super token stands for is added to the attention to it. After the last layer each patch is
    its super token, as it is then, plus the difference that the two had when they were merged.

    All is in place, without training, and the same number of tokens for every image of a size. The state dict and
    what `save_pretrained` writes stay as they are. Layers behind a merge return no attention weights, and hidden
    states of the tokens that are left, but in the feature maps of a backbone all patches are there. An
    `attention_mask` is not looked at, and gradient checkpointing is refused.

    Args:
        model: ViT, DeiT, DINOv2 (with or without registers), DINOv3 or SigLIP of Transformers, with any head.
        shares: Which share of the patches, above 0, is merged after which layer, from 0; `{0: 0.5}` by default.
        cell_size: Cell of a super token, in patches, one int or a `(height, width)` pair. Any grid of patches will do.

    Returns:
        The handle, by which the model becomes what it was.

    Raises:
        ValueError: If an argument cannot be used; the message names it.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTModel
        >>> from svit_hf import merge_into_super_tokens
        >>> model = ViTModel(ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=4))
        >>> with merge_into_super_tokens(model, shares={0: 0.4, 2: 0.2}):
        ...     states = model(torch.randn(1, 3, 224, 224)).last_hidden_state
        >>> states.shape
        torch.Size([1, 197, 48])

    Source: keys as what tokens are compared by, and the bias by mass, from "Token Merging" (Bolya et al., arXiv
    2210.09461), section 3; the neighbourhood from super token sampling.
    """
    shares = {0: 0.5} if shares is None else dict(sorted(shares.items()))
    height, width = (cell_size, cell_size) if isinstance(cell_size, int) else cell_size
    if min(height, width) < 1 or height * width == 1:
        raise ValueError(f"`cell_size` is {cell_size}; it has to be at least 2 patches.")
    attentions, patch_embedding = find_attentions(model)
    if not shares or min(shares) < 0 or max(shares) > len(attentions) - 2:
        raise ValueError(
            f"`shares` has the layers {[*shares]}; allowed are some of those from 0 to {len(attentions) - 2}."
        )
    most = 1 - 1 / (height * width)
    if min(shares.values()) <= 0 or sum(shares.values()) > most:
        raise ValueError(
            f"`shares` is {shares}; each has to be above 0, and all together at most {most:.3g} with `cell_size` "
            f"{cell_size}."
        )
    require_own_forward(attentions[min(shares) :], "shares")
    layers = find_layers(model, attentions)
    stages = find_stages(model, layers)
    return MergedPatches(attentions, layers, stages, patch_embedding, shares, (height, width))


def choose_patches(
    keys: torch.Tensor, cell_size: tuple[int, int], num_patches: int, chosen: torch.Tensor | None
) -> torch.Tensor:
    """Choose the patches that are most like one of the nine seeds around them; seeds are the first of each cell.

    Args:
        keys: What patches are compared by, `(B, D, H, W)`.
        cell_size: `(h, w)` of a cell, in patches.
        num_patches: How many are chosen in each image.
        chosen: What was returned before, if something was: those are chosen already, and stay.

    Returns:
        The row-major number of the cell whose seed a patch is like, and -1 for patches that are not chosen,
        `(B, H*W)`.
    """
    size = (keys.shape[-2], keys.shape[-1])
    rows, columns = count_cells(size, cell_size)
    patches = split_into_cells(F.normalize(keys, dim=1), cell_size)  # (B, G, P, D)
    seeds = patches[:, :, 0].unflatten(1, (rows, columns))
    similarity = patches @ gather_neighbours(seeds).transpose(-2, -1)  # (B, G, P, 9)
    best, neighbour = similarity.masked_fill(is_outside(seeds), -torch.inf).max(dim=-1)  # (B, G, P)
    numbers = torch.arange(rows * columns, device=keys.device).view(1, rows, columns, 1)
    cells = gather_neighbours(numbers).transpose(-2, -1).expand(*best.shape, 9)  # (B, G, P, 9)
    cell = join_cells(cells.gather(-1, neighbour.unsqueeze(-1)), cell_size, size).flatten(1)  # (B, H*W)
    best = join_cells(best.unsqueeze(-1), cell_size, size).flatten(1)
    best = best.masked_fill(_are_seeds(size, cell_size, keys.device), -torch.inf)
    before = torch.full_like(cell, -1) if chosen is None else chosen
    most_alike = best.masked_fill(before >= 0, -torch.inf).topk(num_patches, dim=1).indices
    return before.scatter(1, most_alike, cell.gather(1, most_alike))


def number_groups(chosen: torch.Tensor, size: tuple[int, int], cell_size: tuple[int, int]) -> torch.Tensor:
    """Return the number of the group of each patch, `(B, H*W)`: those of the cells come first.

    Args:
        chosen: What `choose_patches` returns.
        size: `(H, W)`.
        cell_size: `(h, w)` of a cell, in patches.
    """
    rows, columns = count_cells(size, cell_size)
    own = torch.arange(rows * columns, device=chosen.device).view(1, -1, 1, 1)
    own_cell = join_cells(own.expand(-1, -1, cell_size[0] * cell_size[1], -1), cell_size, size).flatten(1)  # (1, H*W)
    is_seed = _are_seeds(size, cell_size, chosen.device)
    is_alone = (chosen < 0) & ~is_seed
    in_cells = torch.where(is_seed, own_cell, chosen)
    return torch.where(is_alone, rows * columns - 1 + is_alone.cumsum(dim=1), in_cells)


def _are_seeds(size: tuple[int, int], cell_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    in_rows = torch.arange(size[0], device=device) % cell_size[0] == 0
    in_columns = torch.arange(size[1], device=device) % cell_size[1] == 0
    return (in_rows.unsqueeze(1) & in_columns).flatten()


def _gather(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return values.gather(1, groups.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _sum_of_groups(values: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    sums = values.new_zeros(len(groups), num_groups, values.shape[-1])
    return sums.scatter_add(1, groups.unsqueeze(-1).expand(-1, -1, values.shape[-1]), values)
