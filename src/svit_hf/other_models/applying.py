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


Mode = Literal["kv", "both"]

# whose tokens are class and register tokens, then patches in rows, with positions added before the first layer
MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "siglip_vision_model")
# of queries, keys and values, in the versions of Transformers
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class AppliedSuperTokens:
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
        self.attentions = list(attentions)
        self.cell_size = cell_size
        self.mode = mode
        self.sampler = sampler
        self.num_iterations = num_iterations
        self.grid_size = (0, 0)
        # nothing else sees images: the layers get a list of tokens
        self._hook = patch_embedding.register_forward_hook(self._note_grid)
        for attention in self.attentions:
            sample = sampler if callable(sampler) else self._make_sampler(sampler, attention)
            # not a submodule: state dicts and saved files stay as they are
            vars(attention)["forward"] = partial(self._attend, attention, sample)

    def __enter__(self) -> "AppliedSuperTokens":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the layers their own attention back; a second time nothing happens."""
        for attention in self.attentions:
            del vars(attention)["forward"]
        self.attentions = []
        self._hook.remove()

    def _make_sampler(self, name: str, attention: nn.Module) -> Any:
        weight = _projections(attention)[0].weight
        learned = make_learned_sampler(name, weight.shape[1], self.cell_size)
        return SUPER_TOKEN_SAMPLERS[name] if learned is None else learned.to(weight.device)

    def _note_grid(self, module: nn.Module, inputs: object, patches: torch.Tensor) -> None:
        self.grid_size = (patches.shape[-2], patches.shape[-1])

    def _attend(
        self, attention: nn.Module, sample: Any, hidden_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, None]:
        height, width = self.grid_size
        num_others = hidden_states.shape[1] - height * width
        others, patches = hidden_states.split([num_others, height * width], dim=1)
        grid = patches.transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        super_tokens, association, mass = self._sample(sample, grid)
        pooled = torch.cat([others, super_tokens.flatten(2).transpose(1, 2)], dim=1)  # (B, S, C)
        # a super token stands for as many keys as it has mass
        bias = F.pad(mass.clamp(min=1e-12).log(), (num_others, 0))[:, None, None].to(hidden_states.dtype)
        if self.mode == "kv":
            return _attention(attention, hidden_states, pooled, bias), None
        others, attended = _attention(attention, pooled, pooled, bias).split([num_others, mass.shape[1]], dim=1)
        attended = attended.transpose(1, 2).unflatten(2, super_tokens.shape[-2:])
        spread = upsample_tokens(attended, association, self.cell_size, (height, width))
        return torch.cat([others, spread.flatten(2).transpose(1, 2)], dim=1), None

    def _sample(self, sample: Any, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the super tokens, the association, and the mass `(B, G)` that patches of the image give."""
        size = grid.shape[-2:]
        num_cells = count_cells(size, self.cell_size)
        missing = [count * cell - length for count, cell, length in zip(num_cells, self.cell_size, size, strict=True)]
        if any(missing):
            # zeros, which no patch of a trained network is like, would take part in the means
            grid = torch.cat([grid, grid[:, :, -1:].expand(-1, -1, missing[0], -1)], dim=2)
            grid = torch.cat([grid, grid[..., -1:].expand(-1, -1, -1, missing[1])], dim=3)
        super_tokens, association = sample(grid, self.cell_size, self.num_iterations)
        are_real = split_into_cells(association.new_ones(1, 1, *size), self.cell_size)  # (1, G, P, 1)
        mass = sum_over_neighbours((association * are_real).sum(dim=2).unsqueeze(-1), num_cells)  # (B, Gh, Gw, 1)
        return super_tokens, association, mass.flatten(1)


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
    attention weights.

    Args:
        model: ViT, DeiT, DINOv2 (with or without registers) or SigLIP of Transformers, with any head.
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
    attentions = [module for module in model.modules() if _is_attention(module)]
    patch_embedding = next((module for module in model.modules() if _embeds_patches(module)), None)
    if not attentions or patch_embedding is None:
        raise ValueError(f"`model` is a {type(model).__name__}; allowed are models of the types {MODEL_TYPES}.")
    layers = range(len(attentions)) if layers is None else layers
    if not set(layers) <= set(range(len(attentions))):
        raise ValueError(f"`layers` is {list(layers)}; the model has layers from 0 to {len(attentions) - 1}.")
    chosen = [attentions[layer] for layer in sorted(set(layers))]
    if any("forward" in vars(attention) for attention in chosen):
        raise ValueError("`layers` has one whose attention was replaced before; remove what replaced it first.")
    return AppliedSuperTokens(chosen, patch_embedding, (height, width), mode, sampler, num_iterations)


def _is_attention(module: nn.Module) -> bool:
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    return model_type in MODEL_TYPES and any(hasattr(module, names[0]) for names in _PROJECTIONS)


def _embeds_patches(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == module.stride


def _projections(attention: nn.Module) -> list[Any]:
    names = next(names for names in _PROJECTIONS if hasattr(attention, names[0]))
    return [getattr(attention, name) for name in names]


def _attention(attention: Any, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attend as the module does, from `queries` `(B, N, C)` to `keys` `(B, S, C)`, with a bias `(B, 1, 1, S)`."""
    config = attention.config
    dropout = getattr(config, "attention_probs_dropout_prob", getattr(config, "attention_dropout", 0.0))
    query, key, value = (
        projection(states).unflatten(2, (config.num_attention_heads, -1)).transpose(1, 2)
        for projection, states in zip(_projections(attention), (queries, keys, keys), strict=True)
    )  # (B, A, N or S, D)
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias.expand(-1, -1, queries.shape[1], -1),
        dropout_p=dropout if attention.training else 0.0,
    )
    attended = attended.transpose(1, 2).flatten(2)
    # versions of Transformers that have no projection here have it in the module around
    output = getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)
    return attended if output is None else output(attended)
