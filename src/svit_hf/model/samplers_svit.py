# SPDX-License-Identifier: Apache-2.0
"""More ways to sample super tokens: each another rule for how tokens associate with the super tokens around them.

All leave cells outside of the grid out. None is what the published weights expect, and none is known to train better
than `soft`: they are there to be compared. Shape letters are those of `super_tokens_svit.py`.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .super_tokens_svit import (
    SUPER_TOKEN_SAMPLERS,
    SuperTokens,
    gather_neighbours,
    is_outside,
    register_super_token_sampler,
    sample_by,
    scaled_dot_products,
    softmax_over_neighbours,
)


# the place of a cell among its neighbours
_ITSELF = 4
# of squared lengths: a zero vector, which padding is, has neither direction nor an unbounded gradient
_COSINE_EPSILON = 1e-6
# how much a distance of one cell takes from the affinity
_WEIGHT_OF_DISTANCE = 2.0


def sample_grid_means(hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1) -> SuperTokens:
    """Take the mean of every cell: each token belongs to the super token of its own cell, whatever it looks like.

    The baseline without any clustering, average pooling and nearest upsampling, as in the pooled keys and values of
    PVTv2 (Wang et al., arXiv 2106.13797), section 3.2. More iterations change nothing.
    """
    return sample_by(hidden_states, cell_size, num_iterations, _own_cell)


def sample_hard(hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1) -> SuperTokens:
    """Give each token to the one super token that is most like it, by dot product; at equality to its own cell's.

    A super token that no token chooses is zero. The choice is a constant for autograd, as in `sample_super_tokens`.

    Source: the assignment of k-means within 3x3 cells, as in SLIC superpixels (Achanta et al., TPAMI 2012), by the
    affinity of super tokens.
    """
    return sample_by(hidden_states, cell_size, num_iterations, _most_similar)


def sample_by_position(
    hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1
) -> SuperTokens:
    """Associate by what tokens look like and by where they are.

    The squared distance between a token and the middle of a neighbouring cell, in cells and times 2, is taken from the
    affinity, so that a token prefers what is near among what is equally similar.

    Source: superpixel sampling networks (Jampani et al., ECCV 2018, arXiv 1807.10174), section 4, which join position
    and colour in one vector.
    """
    return sample_by(hidden_states, cell_size, num_iterations, partial(_similar_and_near, cell_size=cell_size))


def sample_differentiably(
    hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1
) -> SuperTokens:
    """Sample as `sample_super_tokens_masked`, with gradients through the association and all iterations.

    Source: superpixel sampling networks (Jampani et al., ECCV 2018, arXiv 1807.10174), which are trained so.
    """
    return sample_by(hidden_states, cell_size, num_iterations, _similar, differentiable=True)


def sample_at_random(hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1) -> SuperTokens:
    """Associate by chance: a control that tells what clustering that looks at nothing is worth.

    Which tokens go where depends on their places alone, and is the same in every call.
    """
    return sample_by(hidden_states, cell_size, num_iterations, _by_chance)


class CosineSampler(nn.Module):
    """Sampler by cosine, with a temperature that each layer learns: the length of a token does not count.

    Gradients flow through the association, to the temperature and to the tokens.

    Args:
        channels: Channels of the layer; the sampler has one parameter for any number of them.

    Source: scaled cosine attention of Swin V2 (Liu et al., arXiv 2111.09883), section 3.2, with its limit of 100 for
    the factor, which starts at 10.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, math.log(10))

    def forward(self, hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1) -> SuperTokens:
        return sample_by(hidden_states, cell_size, num_iterations, self._associate, differentiable=True)

    def _associate(self, tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
        cosines = _unit(tokens) @ gather_neighbours(_unit(super_tokens)).transpose(-2, -1)  # (B, G, P, 9)
        scale = self.log_scale.to(tokens.dtype).clamp(max=math.log(100)).exp()
        return _softmax_inside(scale * cosines, super_tokens)


class SlotSampler(nn.Module):
    """Sampler by learned keys of tokens and queries of super tokens, which are the slots that tokens are shared among.

    Both are normalized before, and both projections start as the identity. Gradients flow through the association and
    all rounds. Slots start as the means of cells, and a token has nine of them; there is no projection of values, and
    nothing recurrent: what follows is the attention of the layer.

    Args:
        channels: Channels of the layer.

    Source: slot attention (Locatello et al., arXiv 2006.15055), section 2.1.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.key = nn.Parameter(torch.empty(channels, channels))
        self.query = nn.Parameter(torch.empty(channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.key, self.query):
            nn.init.eye_(weight)

    def forward(self, hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1) -> SuperTokens:
        return sample_by(hidden_states, cell_size, num_iterations, self._associate, differentiable=True)

    def _associate(self, tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
        keys, queries = (
            F.linear(F.layer_norm(each, each.shape[-1:]), weight.to(each.dtype))
            for each, weight in ((tokens, self.key), (super_tokens, self.query))
        )
        return _similar(keys, queries)


def _own_cell(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    itself = F.one_hot(torch.tensor(_ITSELF, device=tokens.device), 9).to(tokens.dtype)
    return itself.expand(*tokens.shape[:3], 9)


def _most_similar(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    affinity = scaled_dot_products(tokens, super_tokens).masked_fill(is_outside(super_tokens), -torch.inf)
    best, chosen = affinity.max(dim=-1)
    chosen = chosen.masked_fill(affinity[..., _ITSELF] >= best, _ITSELF)
    return F.one_hot(chosen, 9).to(affinity.dtype)


def _similar(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    return _softmax_inside(scaled_dot_products(tokens, super_tokens), super_tokens)


def _similar_and_near(tokens: torch.Tensor, super_tokens: torch.Tensor, cell_size: tuple[int, int]) -> torch.Tensor:
    height, width = (_squared_distances(length, tokens) for length in cell_size)
    distance = height[:, None, :, None] + width[None, :, None, :]  # (h, w, 3, 3)
    affinity = scaled_dot_products(tokens, super_tokens) - _WEIGHT_OF_DISTANCE * distance.flatten(2).flatten(0, 1)
    return _softmax_inside(affinity, super_tokens)


def _by_chance(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    _, num_cells, num_tokens, _ = tokens.shape
    number = torch.arange(1, num_cells * num_tokens * 9 + 1, device=tokens.device)
    # a function of the place instead of a generator: what is compiled, exported or resumed draws the same
    for _ in range(2):
        number = ((number >> 16) ^ number) * 0x45D9F3B & 0xFFFFFFFF
    draws = ((number >> 16) ^ number) & 0xFFFF
    affinity = 8 * draws.view(1, num_cells, num_tokens, 9).to(tokens.dtype) / 0xFFFF
    return _softmax_inside(affinity.expand(tokens.shape[0], -1, -1, -1), super_tokens)


def _squared_distances(length: int, like: torch.Tensor) -> torch.Tensor:
    """Return the squared distances, in cells, of a cell's tokens to three cells along one axis, `(length, 3)`."""
    places = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length
    middles = torch.arange(-1, 2, dtype=like.dtype, device=like.device) + 0.5
    return (places.unsqueeze(1) - middles) ** 2


def _softmax_inside(affinity: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    return softmax_over_neighbours(affinity.masked_fill(is_outside(super_tokens), -torch.inf))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + _COSINE_EPSILON).rsqrt()


register_super_token_sampler("grid", sample_grid_means)
register_super_token_sampler("hard", sample_hard)
register_super_token_sampler("position", sample_by_position)
register_super_token_sampler("differentiable", sample_differentiably)
register_super_token_sampler("random", sample_at_random)
register_super_token_sampler("cosine", CosineSampler)
register_super_token_sampler("slots", SlotSampler)

__all__ = ["SUPER_TOKEN_SAMPLERS", "CosineSampler"]
