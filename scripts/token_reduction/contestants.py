# SPDX-License-Identifier: Apache-2.0
"""Ways to spend less on a trained DINOv2 of Transformers: super tokens, and what they have to be compared with.

Each takes normalised pixels, `(B, 3, H, W)`, and returns what `last_hidden_state` of the model is, for every patch.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import functional as F

from svit_hf.other_models import apply_super_tokens, merge_into_super_tokens


Features = Callable[[torch.Tensor], torch.Tensor]


class TokenMerging:
    """Token Merging, with proportional attention: in each layer a number of tokens join the one most like them.

    Args:
        model: A `Dinov2Model`.
        share: Of the tokens of an image, merged in each layer; or in which layers which share.
        keep_differences: Whether a merged token gets, at the end, what set it apart when it was merged.

    Source: Bolya et al., arXiv 2210.09461, section 3, written from the text.
    """

    def __init__(self, model: Any, share: float | Mapping[int, float], keep_differences: bool = False):
        self.model = model
        layers = range(len(model.encoder.layer))
        self.shares = share if isinstance(share, Mapping) else dict.fromkeys(layers, share)
        self.keep_differences = keep_differences

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the states after the last layer norm."""
        tokens = self.model.embeddings(pixels)
        num_tokens = tokens.shape[1]
        groups = torch.arange(num_tokens).expand(len(tokens), -1)
        sizes = tokens.new_ones(tokens.shape[:2])
        differences = torch.zeros_like(tokens) if self.keep_differences else None
        for number, layer in enumerate(self.model.encoder.layer):
            of_groups = sizes if tokens.shape[1] < num_tokens else None
            attended, keys = _attend(layer.attention, layer.norm1(tokens), of_groups)
            tokens = tokens + layer.layer_scale1(attended)
            joining = min(round(self.shares.get(number, 0) * num_tokens), (tokens.shape[1] - 1) // 2)
            if joining:
                joined, left = _match(keys.mean(1), joining), tokens.shape[1] - joining  # (B, S)
                new_sizes = sizes.new_zeros(len(sizes), left).scatter_add(1, joined, sizes)
                sums = tokens.new_zeros(len(tokens), left, tokens.shape[2])
                sums = sums.scatter_add(1, _wide(joined, tokens), tokens * sizes.unsqueeze(-1))
                merged, new_groups = sums / new_sizes.unsqueeze(-1), joined.gather(1, groups)
                if differences is not None:
                    differences = differences + _take(tokens, groups) - _take(merged, new_groups)
                tokens, sizes, groups = merged, new_sizes, new_groups
            tokens = tokens + layer.layer_scale2(layer.mlp(layer.norm2(tokens)))
        tokens = _take(tokens, groups)
        return self.model.layernorm(tokens if differences is None else tokens + differences)


class RandomDropping:
    """Only some patches, drawn at random, go through the layers; the others get the features of the nearest one.

    Args:
        model: A `Dinov2Model`.
        share: Of the patches, left out.
    """

    def __init__(self, model: Any, share: float):
        self.model = model
        self.share = share

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the states after the last layer norm."""
        tokens = self.model.embeddings(pixels)
        height, width = (length // self.model.config.patch_size for length in pixels.shape[-2:])
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
        kept = order[round(self.share * len(order)) :].sort().values
        places = torch.cartesian_prod(torch.arange(float(height)), torch.arange(float(width)))
        nearest = torch.cdist(places, places[kept]).argmin(dim=1)
        tokens = torch.cat([tokens[:, :1], tokens[:, 1 + kept]], dim=1)
        for layer in self.model.encoder.layer:
            tokens = layer(tokens)
        tokens = self.model.layernorm(tokens)
        return torch.cat([tokens[:, :1], tokens[:, 1 + nearest]], dim=1)


class Changed:
    """A model that is changed in place while it is called.

    Args:
        model: A `Dinov2Model`.
        change: What changes it, and as a context manager gives back what was there.
    """

    def __init__(self, model: Any, change: Callable[[Any], AbstractContextManager[Any]]):
        self.model = model
        self.change = change

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the states after the last layer norm."""
        with self.change(self.model):
            return self.as_it_is(pixels)

    def as_it_is(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the states of the model, whether it is changed or not."""
        states: torch.Tensor = self.model(pixels).last_hidden_state
        return states


def _attend(attention: Any, states: torch.Tensor, sizes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what tokens attend to, each as if as often as its size says, and their keys, `(B, A, S, D)`."""
    query, key, value = (
        projection(states).unflatten(2, (attention.config.num_attention_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mask = None if sizes is None else sizes.log()[:, None, None].expand(-1, -1, states.shape[1], -1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.o_proj(attended.transpose(1, 2).flatten(2)), key


def _match(keys: torch.Tensor, number: int) -> torch.Tensor:
    """Let `number` of every other token join the one most like it among the rest: new numbers of tokens, `(B, S)`."""
    keys = F.normalize(keys, dim=-1)
    similarity = keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)
    # nothing joins the class token, which is the first
    similarity[:, :, 0] = -torch.inf
    best, partner = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    joining, staying = order[:, :number], order[:, number:]
    num_partners = similarity.shape[2]
    numbers = torch.arange(num_partners, num_partners + staying.shape[1]).expand(len(keys), -1)
    odd = torch.empty_like(order).scatter(1, staying, numbers).scatter(1, joining, partner.gather(1, joining))
    joined = odd.new_empty(keys.shape[:2])
    joined[:, ::2] = torch.arange(num_partners)
    joined[:, 1::2] = odd
    return joined


def _wide(index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return index.unsqueeze(-1).expand(-1, -1, values.shape[-1])


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values.gather(1, _wide(index, values))


def contestants_of(model: Any) -> dict[str, dict[str, Features]]:
    """Return the settings of each contestant, from the slowest to the fastest.

    Args:
        model: A `Dinov2Model` of 12 layers.
    """
    most = [0, 1, 2, *range(6, 12)]

    def pooled(sampler: str, mode: Any, cell: int, layers: Any) -> Features:
        return Changed(model, lambda m: apply_super_tokens(m, cell, layers, mode, sampler))

    def merged(shares: dict[int, float]) -> Features:
        return Changed(model, lambda m: merge_into_super_tokens(m, shares))

    return {
        "merged once": {f"{share}": merged({0: share}) for share in (0.15, 0.3, 0.45, 0.6)},
        "merged twice": {
            f"{first}, {second}": merged({0: first, 6: second})
            for first, second in ((0.1, 0.1), (0.2, 0.15), (0.35, 0.2), (0.45, 0.25))
        },
        "ToMe": {f"{share}": TokenMerging(model, share) for share in (0.025, 0.045, 0.065, 0.075, 0.085)},
        "ToMe, differences kept": {
            f"{share}": TokenMerging(model, share, keep_differences=True) for share in (0.045, 0.065, 0.085)
        },
        # at the place and in the way of super tokens: what is left is who joins whom
        "ToMe once, differences kept": {
            f"{share}": TokenMerging(model, {0: share}, keep_differences=True) for share in (0.15, 0.3, 0.45)
        },
        "random dropping": {f"{share}": RandomDropping(model, share) for share in (0.15, 0.3, 0.45, 0.6)},
        "average pooling of keys": {
            name: pooled("grid", "kv", cell, layers)
            for name, cell, layers in (("2, most", 2, most), ("2, all", 2, None), ("4, all", 4, None))
        },
        "super tokens, kv": {
            name: pooled("soft_masked", "kv", cell, layers)
            for name, cell, layers in (("2, most", 2, most), ("2, all", 2, None), ("4, all", 4, None))
        },
        "super tokens, both": {
            name: pooled("soft_masked", "both", 2, layers)
            for name, layers in (("2, 6 to 11", range(6, 12)), ("2, most", most), ("2, all", None))
        },
    }
