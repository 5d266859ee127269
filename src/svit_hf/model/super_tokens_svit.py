# SPDX-License-Identifier: Apache-2.0
"""The super-token algorithm of SViT as pure functions: sample, attend, upsample. No class, no weight lives here.

Shape letters: `B` batch, `C` channels, `H W` token grid (after padding), `h w` cell size, `Gh Gw` super-token grid,
`G = Gh*Gw`, `P = h*w` tokens per cell, `K = 9` neighbours, `A` heads, `D` head width.

Source: "Vision Transformer with Super Token Sampling" (Huang et al., CVPR 2023, arXiv 2211.11167), section 3.2, and
the behaviour of `StokenAttention` in hhb072/STViT@c9ed9a4, re-implemented from the arithmetic.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .cells_svit import count_cells, join_cells, split_into_cells


class SuperTokens(NamedTuple):
    """Super tokens of a grid, and how much each token belongs to them.

    Attributes:
        super_tokens: Shape `(B, C, Gh, Gw)`, dtype of the tokens.
        association: Shape `(B, G, P, 9)`, float32, for most samplers a constant for autograd. Entry `[b, g, p, k]` is
            the share of token `p` of cell `g` in neighbour `k` of that cell; the 3x3 neighbours and the tokens of a
            cell are in row-major order, `k = 4` being the cell itself. Each row sums to 1.
    """

    super_tokens: torch.Tensor
    association: torch.Tensor


SuperTokenSampler = Callable[[torch.Tensor, tuple[int, int], int], SuperTokens]


def super_token_attention(
    hidden_states: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
    cell_size: tuple[int, int],
    num_iterations: int = 1,
    sampler: str | SuperTokenSampler = "soft",
) -> tuple[torch.Tensor, SuperTokens]:
    """Let all tokens attend to each other through super tokens.

    Args:
        hidden_states: Token grid, shape `(B, C, H, W)`; any `H` and `W`, any float dtype.
        attend: Maps the super tokens, `(B, C, Gh, Gw)`, to new ones of the same shape.
        cell_size: `(h, w)` of a cell, in tokens.
        num_iterations: Rounds of association and averaging, at least 1.
        sampler: A name in `SUPER_TOKEN_SAMPLERS`, or a function or module like those there.

    Returns:
        The new tokens, shape `(B, C, H, W)`, and the sampled super tokens (before `attend`).

    Source: section 3.2; `StokenAttention.forward` in hhb072/STViT@c9ed9a4.
    """
    sample = SUPER_TOKEN_SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    sampled = sample(hidden_states, cell_size, num_iterations)
    attended = attend(sampled.super_tokens)
    return upsample_tokens(attended, sampled.association, cell_size, hidden_states.shape[-2:]), sampled


def sample_super_tokens(
    hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1, *, mask_outside: bool = False
) -> SuperTokens:
    """Group tokens into super tokens by soft assignment to the 3x3 nearest cells.

    The super tokens start as the means of their cells. A round associates every token with the nine super tokens
    around it, by a softmax over scaled dot products, and replaces the super tokens by the means of all tokens,
    weighted by association.

    Cells outside of the grid are zero vectors rather than masked: they have affinity 0, take part in the softmax and
    take mass away along the border. The published weights were trained so.

    The association is a constant for autograd: the gradient reaches `hidden_states` through the last weighted mean
    alone. Affinity, softmax, mass and division are computed in float32, so that a super token without any mass gives 0
    and not NaN in half precision.

    Args:
        hidden_states: Token grid, shape `(B, C, H, W)`; any float dtype. Where `H` and `W` are no multiples of the
            cell, zeros are added on the right and at the bottom, which count in the super tokens.
        cell_size: `(h, w)` of a cell, in tokens.
        num_iterations: Rounds of association and averaging, at least 1.
        mask_outside: Whether cells outside of the grid are left out of the softmax instead.

    Returns:
        The super tokens and the association.

    Raises:
        ValueError: If `num_iterations` is below 1.

    Source: section 3.2, equations 2 to 7; `StokenAttention.stoken_forward` in hhb072/STViT@c9ed9a4.
    """
    return sample_by(hidden_states, cell_size, num_iterations, partial(_associate, mask_outside=mask_outside))


def sample_by(
    hidden_states: torch.Tensor,
    cell_size: tuple[int, int],
    num_iterations: int,
    associate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    differentiable: bool = False,
) -> SuperTokens:
    """Sample as `sample_super_tokens`, with another rule for how tokens associate with the super tokens around them.

    Args:
        hidden_states: Token grid, shape `(B, C, H, W)`.
        cell_size: `(h, w)` of a cell, in tokens.
        num_iterations: Rounds of association and averaging, at least 1.
        associate: Maps tokens `(B, G, P, C)` and super tokens `(B, Gh, Gw, C)`, both at least float32, to the
            association, `(B, G, P, 9)`, whose rows sum to 1.
        differentiable: Whether gradients flow through the association too, to the tokens and to what `associate`
            learns.

    Returns:
        The super tokens and the association.

    Raises:
        ValueError: If `num_iterations` is below 1.
    """
    if num_iterations < 1:
        raise ValueError(f"`num_iterations` is {num_iterations}; it has to be at least 1.")
    grid_size = count_cells(hidden_states.shape[-2:], cell_size)
    tokens = split_into_cells(hidden_states, cell_size)  # (B, G, P, C)
    # half precision loses the small masses and overflows in the sum over a large cell
    with nullcontext() if differentiable else torch.no_grad(), without_autocast(tokens.device.type):
        tokens_float = tokens if differentiable else tokens.detach()
        tokens_float = tokens_float.to(torch.promote_types(tokens.dtype, torch.float32))
        super_tokens = tokens_float.mean(dim=2).unflatten(1, grid_size)  # (B, Gh, Gw, C)
        association = associate(tokens_float, super_tokens)  # (B, G, P, 9)
        weights = _weights_of_means(association, grid_size)  # (B, G, P, 9)
        for _ in range(num_iterations - 1):
            super_tokens = sum_over_neighbours(weights.transpose(-2, -1) @ tokens_float, grid_size)  # (B, Gh, Gw, C)
            association = associate(tokens_float, super_tokens)
            weights = _weights_of_means(association, grid_size)
    # weights of at most 1 that sum to 1 keep this sum in the range of the tokens, whatever the dtype
    weights = weights.to(tokens.dtype)
    super_tokens = sum_over_neighbours(weights.transpose(-2, -1) @ tokens, grid_size)  # (B, Gh, Gw, C)
    return SuperTokens(super_tokens.to(hidden_states.dtype).permute(0, 3, 1, 2), association)


def sample_super_tokens_masked(
    hidden_states: torch.Tensor, cell_size: tuple[int, int], num_iterations: int = 1
) -> SuperTokens:
    """Sample as `sample_super_tokens`, with cells outside of the grid left out of the association.

    No mass is lost at the border, so that a constant grid comes back as itself. Not what the published weights expect.
    """
    return sample_super_tokens(hidden_states, cell_size, num_iterations, mask_outside=True)


# of functions, and of classes of modules, one of which each layer makes for itself
SUPER_TOKEN_SAMPLERS: dict[str, Any] = {"soft": sample_super_tokens, "soft_masked": sample_super_tokens_masked}


def register_super_token_sampler(name: str, sampler: SuperTokenSampler | type[nn.Module]) -> None:
    """Make a sampler known by a name, to be chosen by `SViTConfig(super_token_sampler=NAME)`.

    The name is saved with a model and the sampler is not: where such a model is loaded, it has to be registered
    before. Kernels say themselves which samplers they compute; layers with others run with PyTorch's own operators.

    Args:
        name: The name in configs. One that is taken is refused, since kernels and saved models rely on it.
        sampler: A function of `hidden_states`, `cell_size` and `num_iterations` that returns `SuperTokens`
            (`sample_by` does all but the association); or, where something is to be learned, a subclass of `nn.Module`
            that is constructed with the channels of a layer, once for each layer with super tokens, and then called
            like such a function. Parameters of its own are set by a method `reset_parameters()`, with functions of
            `torch.nn.init`.

    Raises:
        ValueError: If the name is empty or taken, or the sampler is neither a function nor a class of modules.

    Example:
        >>> from svit_hf import SViTConfig, register_super_token_sampler
        >>> from svit_hf.model.super_tokens_svit import sample_super_tokens
        >>> def sample_twice(hidden_states, cell_size, num_iterations):
        ...     return sample_super_tokens(hidden_states, cell_size, 2 * num_iterations)
        >>> register_super_token_sampler("soft_twice", sample_twice)
        >>> SViTConfig(super_token_sampler="soft_twice").super_token_sampler
        'soft_twice'
    """
    if not name or SUPER_TOKEN_SAMPLERS.get(name, sampler) is not sampler:
        raise ValueError(f"`name` is {name!r}; it has to be none of {sorted(SUPER_TOKEN_SAMPLERS)}, nor empty.")
    if isinstance(sampler, nn.Module) or not callable(sampler):
        raise ValueError(f"`sampler` is {sampler!r}; allowed are a function, and a subclass of `nn.Module`.")
    SUPER_TOKEN_SAMPLERS[name] = sampler


def make_learned_sampler(name: str, channels: int, cell_size: tuple[int, int]) -> nn.Module | None:
    """Construct what a layer learns for its sampling; None if that is nothing."""
    sampler = SUPER_TOKEN_SAMPLERS[name]
    is_learned = isinstance(sampler, type) and cell_size != (1, 1)
    return sampler(channels) if is_learned else None


def upsample_tokens(
    super_tokens: torch.Tensor, association: torch.Tensor, cell_size: tuple[int, int], size: Sequence[int]
) -> torch.Tensor:
    """Spread super tokens back over the token grid with the association they were sampled with.

    Linear in `super_tokens`, and the adjoint of the weighted sum in `sample_super_tokens`. Cells outside of the grid
    contribute nothing.

    Args:
        super_tokens: Shape `(B, C, Gh, Gw)`.
        association: Shape `(B, G, P, 9)`, see `SuperTokens`.
        cell_size: `(h, w)` of a cell, in tokens.
        size: `(H, W)` of the token grid; what was padded for whole cells is cut off.

    Returns:
        Token grid, shape `(B, C, H, W)`, dtype of `super_tokens`, channels next to each other in memory.

    Source: section 3.2, equation 9; `StokenAttention.stoken_forward` in hhb072/STViT@c9ed9a4.
    """
    neighbours = gather_neighbours(super_tokens.permute(0, 2, 3, 1))  # (B, G, 9, C)
    tokens = association.to(super_tokens.dtype) @ neighbours  # (B, G, P, C)
    return join_cells(tokens.to(super_tokens.dtype), cell_size, size)


def is_outside(super_tokens: torch.Tensor) -> torch.Tensor:
    """Return which neighbours of `(B, Gh, Gw, C)` super tokens are outside of the grid, `(1, G, 1, 9)`."""
    return gather_neighbours(torch.ones_like(super_tokens[:1, ..., :1])).transpose(-2, -1) == 0


def scaled_dot_products(tokens: torch.Tensor, super_tokens: torch.Tensor) -> torch.Tensor:
    """Compare tokens `(B, G, P, C)` with the super tokens `(B, Gh, Gw, C)` around them: `(B, G, P, 9)`.

    In memory the tokens of a cell are next to each other, not its nine neighbours, as `softmax_over_neighbours` wants.
    """
    # scaling the few is cheaper than scaling the products
    neighbours = gather_neighbours(super_tokens * tokens.shape[-1] ** -0.5)  # (B, G, 9, C)
    return (neighbours @ tokens.transpose(-2, -1)).transpose(-2, -1)


def softmax_over_neighbours(affinity: torch.Tensor) -> torch.Tensor:
    """Turn affinity, `(B, G, P, 9)`, into association."""
    # over rows of nine, shorter than its vectors, a CPU takes five times as long as over columns
    return affinity.transpose(-2, -1).softmax(dim=-2).transpose(-2, -1)


def _associate(tokens: torch.Tensor, super_tokens: torch.Tensor, *, mask_outside: bool) -> torch.Tensor:
    affinity = scaled_dot_products(tokens, super_tokens)
    if mask_outside:
        affinity = affinity.masked_fill(is_outside(super_tokens), -torch.inf)
    return softmax_over_neighbours(affinity)


def _weights_of_means(association: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Divide the association, `(B, G, P, 9)`, by the mass of the super tokens."""
    mass = sum_over_neighbours(association.sum(dim=2).unsqueeze(-1), grid_size)  # (B, Gh, Gw, 1)
    # gathering the reciprocal gives weight 0, not 1e12, to the cells outside of the grid
    return association * gather_neighbours((mass + 1e-12).reciprocal()).transpose(-2, -1)


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Return a context in which a type of device computes in the dtype of its tensors."""
    # the meta device, on which models are counted and planned, has no autocast to switch off
    has_autocast = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if has_autocast else nullcontext()


def gather_neighbours(grid: torch.Tensor) -> torch.Tensor:
    """Collect the 3x3 neighbours of every cell, zeros outside: `(B, Gh, Gw, C)` to `(B, G, 9, C)`."""
    _, rows, columns, _ = grid.shape
    # one axis after the other, by narrow: few operations, whose sizes stay simple where they are symbols
    padded = F.pad(grid, (0, 0, 1, 1, 1, 1))
    by_row = torch.stack([padded.narrow(1, y, rows) for y in range(3)], dim=3)  # (B, Gh, Gw + 2, 3, C)
    by_cell = torch.stack([by_row.narrow(2, x, columns) for x in range(3)], dim=4)  # (B, Gh, Gw, 3, 3, C)
    return by_cell.flatten(3, 4).flatten(1, 2)


def sum_over_neighbours(partial_sums: torch.Tensor, grid_size: Sequence[int]) -> torch.Tensor:
    """Add what every cell has for its 3x3 neighbours, dropping what points outside: the adjoint of gathering.

    `(B, G, 9, C)` to `(B, Gh, Gw, C)`.
    """
    rows, columns = grid_size
    by_cell = partial_sums.unflatten(2, (3, 3)).unflatten(1, grid_size)  # (B, Gh, Gw, 3, 3, C)
    # what a cell has for the neighbour above it, say, arrives there from the cell below
    by_cell = F.pad(by_cell, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    left, middle, right = (by_cell.select(4, x).narrow(2, 2 - x, columns) for x in range(3))
    by_row = left + middle + right  # (B, Gh + 2, Gw, 3, C)
    above, level, below = (by_row.select(3, y).narrow(1, 2 - y, rows) for y in range(3))
    return above + level + below
