# SPDX-License-Identifier: Apache-2.0
"""Faster kernels for the layers of SViT, put on a model from outside and taken off again.

The model knows nothing of this folder. `choice.py` has the names of the kernels and the choice among them, `layers.py`
the layers that they serve. Kernels themselves are a folder each, which registers its operators with PyTorch when it is
first used. README.md beside this file has the mathematics, the contract, and how to add some.
"""

from torch import nn

from svit_hf.kernels.choice import KERNELS, KILL_SWITCH, require, resolve
from svit_hf.kernels.layers import layers_of, set_kernels


__all__ = ["KERNELS", "KILL_SWITCH", "resolve", "use_kernels"]


def use_kernels(model: nn.Module, kernels: str | None = "auto") -> None:
    """Let the layers of SViT in a model compute with kernels, or with PyTorch's own operators again.

    The layers are found by the names of their classes, so that models of remote code from the Hub are served too. The
    choice belongs to the object: no config and no saved file knows of it. Copies and pickles of the model keep it.

    Args:
        model: Any module with layers of SViT in it, folded or not.
        kernels: "triton" for these kernels; "auto" for kernels on devices where they were measured to be faster, which
            is said once, and PyTorch's own operators elsewhere and in models without layers of SViT; None for
            PyTorch's own operators alone, with which every model starts.

    Raises:
        ValueError: If `kernels` is no such name, or kernels that were asked for by name cannot run, or have no layer
            to serve; the message says why. What depends on the device and the dtype of the tokens is found out by the
            next forward pass, and raised there.

    Example:
        >>> from svit_hf import SViTConfig, SViTModel
        >>> from svit_hf.kernels import use_kernels
        >>> model = SViTModel(SViTConfig())
        >>> use_kernels(model, "auto")
        >>> use_kernels(model, None)
    """
    layers = layers_of(model)
    if kernels not in (None, "auto") and not layers:
        raise ValueError(f"`model` is a {type(model).__name__} without any layer of SViT that kernels could serve.")
    for sampler in {getattr(layer, "sampler", None) for layer in layers}:
        require(kernels, sampler=sampler)
    for layer in layers:
        set_kernels(layer, kernels)
