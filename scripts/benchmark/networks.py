# SPDX-License-Identifier: Apache-2.0
"""The networks that are compared: SViT, and its peers built from their configs with random weights.

Nothing is downloaded. A peer is one entry in `PEERS`; other names are asked of timm where it is installed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from svit_hf.benchmark.measuring import made_up_images
from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.multiply_adds import count_multiply_adds


NUM_LABELS = 1000
LAYOUTS = ("small", "base", "large")


@dataclass(frozen=True)
class Network:
    """Classifier to build.

    Attributes:
        name: As in tables.
        build: Returns the classifier in float32 on the CPU, for square images of this edge in pixels.
        config: Of an SViT; `None` for its peers.
    """

    name: str
    build: Callable[[int], nn.Module]
    config: SViTConfig | None = None


class PooledClassifier(nn.Module):
    """Linear classifier on a base model that has none of its own in Transformers."""

    def __init__(self, base: nn.Module, num_features: int):
        super().__init__()
        self.base = base
        self.classifier = nn.Linear(num_features, NUM_LABELS)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, NUM_LABELS)`."""
        return self.classifier(self.base(pixel_values).pooler_output)


def _in_tree(kind: str, fields: dict[str, Any], image_size: int) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(image_size=image_size, num_labels=NUM_LABELS, **fields)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def _hiera_t(image_size: int) -> nn.Module:
    config = transformers.HieraConfig(image_size=[image_size] * 2, depths=[1, 2, 7, 2], num_labels=NUM_LABELS)
    return transformers.HieraForImageClassification(config)


def _dinov3_convnext_t(image_size: int) -> nn.Module:
    config = transformers.DINOv3ConvNextConfig(image_size=image_size, hidden_sizes=[96, 192, 384, 768])
    return PooledClassifier(transformers.DINOv3ConvNextModel(config), 768)


# layouts of about the size of SViT-S, as their authors publish them
PEERS: dict[str, Callable[[int], nn.Module]] = {
    # no dropped paths: what they would save differs from draw to draw
    "swin-t": partial(_in_tree, "Swin", {"drop_path_rate": 0.0}),
    "convnext-t": partial(_in_tree, "ConvNext", {}),
    "pvt-v2-b2": partial(_in_tree, "PvtV2", {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512]}),
    "dinov3-convnext-t": _dinov3_convnext_t,
    "hiera-t": _hiera_t,
}


def svit_network(model: str, super_token_sizes: list[int] | None = None) -> Network:
    """Return SViT as a published layout, or from a folder that `save_pretrained` wrote.

    Raises:
        SViTError: If `model` is neither.
    """
    cells: dict[str, Any] = {} if super_token_sizes is None else {"super_token_sizes": super_token_sizes}
    suffix = "" if super_token_sizes is None else f" cells {' '.join(map(str, super_token_sizes))}"
    if model in LAYOUTS:
        config = getattr(SViTConfig, model)(num_labels=NUM_LABELS, **cells)
        return Network(
            f"svit-{model}{suffix}", lambda size: with_lively_norms(SViTForImageClassification(config)), config
        )
    if not (Path(model) / "config.json").is_file():
        raise SViTError(f"`model` is {model!r}, neither one of {', '.join(LAYOUTS)} nor a folder with a config.json.")
    config = SViTConfig.from_pretrained(model, **cells)
    return Network(
        f"{Path(model).name}{suffix}",
        lambda size: SViTForImageClassification.from_pretrained(model, **cells),
        config,
    )


def peer_network(name: str) -> Network:
    """Return a peer by its name in `PEERS`, or in timm where that is installed.

    Raises:
        SViTError: If nobody knows the name.
    """
    if name in PEERS:
        return Network(name, PEERS[name])
    if find_spec("timm") is None:
        raise SViTError(f"`peers` has {name!r}; allowed are {', '.join(PEERS)}, and models of timm where it is there.")
    import timm

    if not timm.is_model(name):
        raise SViTError(f"`peers` has {name!r}; allowed are {', '.join(PEERS)}, and what `timm.list_models()` lists.")

    def build(image_size: int) -> nn.Module:
        # layouts with a fixed size take it as an argument, the others refuse the argument
        try:
            return timm.create_model(name, num_classes=NUM_LABELS, img_size=image_size)
        except TypeError:
            return timm.create_model(name, num_classes=NUM_LABELS)

    return Network(f"timm {name}", build)


def count_macs(model: nn.Module, image_size: int) -> int | None:
    """Count the multiply-accumulates of one image: convolutions, matrix products and attention.

    Returns:
        The count, or `None` where the network cannot be run without data.
    """
    counted: Any = copy.deepcopy(model).to("meta")
    if hasattr(counted, "set_attn_implementation"):
        # the counter does not know every fused attention
        counted.set_attn_implementation("eager")
    try:
        return count_multiply_adds(counted, (image_size, image_size), torch.device("meta"))
    except (NotImplementedError, RuntimeError):
        return None


@torch.no_grad()
def with_lively_norms(model: nn.Module) -> nn.Module:
    """Give norms and layer scales values as after training, and batch norms the statistics of a made-up batch.

    Fresh ones are the identity: a network that left one out, or folded it wrongly, would still give the right logits,
    and the correctness gate would see nothing.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(".scale"):
            parameter.normal_(0.5, 0.1)
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(made_up_images(4, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model
