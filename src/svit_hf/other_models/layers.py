# SPDX-License-Identifier: Apache-2.0
"""The parts of vision transformers of Transformers that super tokens have to do with, and attention by their weights.

Shape letters are those of `super_tokens_svit.py`; besides, `N` tokens of an image, of which the first are no patches
(class and register tokens), and `S` of those that are attended to.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F


# whose tokens are class and register tokens, then patches in rows
MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip_vision_model")
# cosines and sines by which DINOv3 turns the queries and keys of patches, each `(N, D)` or `(B, N, D)`
Rotation = tuple[torch.Tensor, torch.Tensor]
# of queries, keys and values, in the versions of Transformers
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))


class ReplacedAttention:
    """Other ways of some attention modules to work, and hooks, until `remove` is called or a `with` block ends.

    Attributes:
        attentions: The modules; none after that.
    """

    def __init__(self) -> None:
        self.attentions: list[nn.Module] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the modules their own attention back; a second time nothing happens."""
        for attention in self.attentions:
            del vars(attention)["forward"]
        for hook in self._hooks:
            hook.remove()
        self.attentions, self._hooks = [], []

    def _replace(self, attention: nn.Module, forward: Callable[..., Any]) -> None:
        # not a submodule: state dicts and saved files stay as they are
        vars(attention)["forward"] = forward
        self.attentions.append(attention)


def find_attentions(model: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """Return the attention of every layer, and the convolution that turns images into patches.

    Raises:
        ValueError: If the model is of another type.
    """
    attentions = [module for module in model.modules() if _is_attention(module)]
    patch_embedding = next((module for module in model.modules() if _embeds_patches(module)), None)
    if not attentions or patch_embedding is None:
        raise ValueError(f"`model` is a {type(model).__name__}; allowed are models of the types {MODEL_TYPES}.")
    return attentions, patch_embedding


def find_layers(model: nn.Module, attentions: list[nn.Module]) -> list[nn.Module]:
    """Return the layers that have these attention modules in them, one each."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(next(layers for layers in lists if attentions[0] in layers.modules()))


def find_stages(model: nn.Module, layers: list[nn.Module]) -> list[int]:
    """Return the numbers of the layers whose outputs a backbone gives as maps; none if the model has no backbone."""
    backbones = (module for module in model.modules() if getattr(module, "out_indices", None))
    backbone: Any = next((module for module in backbones if layers[0] in module.modules()), None)
    # the first stage is the embeddings
    return [] if backbone is None else [index - 1 for index in backbone.out_indices if index]


def require_own_forward(attentions: list[nn.Module], argument: str) -> None:
    """Refuse attention that was replaced.

    Raises:
        ValueError: If it was.
    """
    if any("forward" in vars(attention) for attention in attentions):
        raise ValueError(
            f"`{argument}` has a layer whose attention was replaced before; remove what replaced it first."
        )


def projections(attention: nn.Module) -> list[Any]:
    """Return the projections to queries, keys and values."""
    names = next(names for names in _PROJECTIONS if hasattr(attention, names[0]))
    return [getattr(attention, name) for name in names]


def attend(
    attention: Any,
    queries: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor,
    query_rotation: Rotation | None = None,
    key_rotation: Rotation | None = None,
) -> torch.Tensor:
    """Attend as the module does, from `queries` `(B, N, C)` to `keys` `(B, S, C)`, with a bias `(B, S)`."""
    config = attention.config
    dropout = getattr(config, "attention_probs_dropout_prob", getattr(config, "attention_dropout", 0.0))
    query, key, value = (
        projection(states).unflatten(2, (config.num_attention_heads, -1)).transpose(1, 2)
        for projection, states in zip(projections(attention), (queries, keys, keys), strict=True)
    )  # (B, A, N or S, D)
    attended = F.scaled_dot_product_attention(
        _turn(query, query_rotation),
        _turn(key, key_rotation),
        value,
        attn_mask=bias[:, None, None].expand(-1, -1, queries.shape[1], -1),
        dropout_p=dropout if attention.training else 0.0,
    )
    attended = attended.transpose(1, 2).flatten(2)
    # versions of Transformers that have no projection here have it in the module around
    output = getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)
    return attended if output is None else output(attended)


def _is_attention(module: nn.Module) -> bool:
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    return model_type in MODEL_TYPES and any(hasattr(module, names[0]) for names in _PROJECTIONS)


def _embeds_patches(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == module.stride


def _turn(states: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Turn the last tokens of `(B, A, N, D)`, one for each cosine; the others, which come first, have no position."""
    if rotation is None:
        return states
    cosines, sines = (part if part.dim() == 2 else part.unsqueeze(1) for part in rotation)
    others, patches = states.split([states.shape[2] - cosines.shape[-2], cosines.shape[-2]], dim=2)
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([others, patches * cosines + torch.cat([-second, first], dim=-1) * sines], dim=2)
