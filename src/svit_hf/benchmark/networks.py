# SPDX-License-Identifier: Apache-2.0
"""The networks that are compared: SViT, and its peers built from their configs with random weights.

Nothing is downloaded. A peer is one entry in `PEERS`; names beyond them are asked of timm where it is installed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    HieraConfig,
    HieraForImageClassification,
    PvtV2Config,
    PvtV2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.modeling_svit import SViTForImageClassification, SViTLayerScale


NUM_LABELS = 1000
# the configs take it by keyword, which their signatures do not show
_HEAD: dict[str, Any] = {"num_labels": NUM_LABELS}
LAYOUTS = ("small", "base", "large")


@dataclass(frozen=True)
class Network:
    """Say what to build, and under which name it is listed.

    Attributes:
        name: As in tables.
        build: Returns the classifier in float32 on the CPU for square images of this edge in pixels.
    """

    name: str
    build: Callable[[int], nn.Module]


@dataclass(frozen=True)
class SViTNetwork(Network):
    """Say it of SViT, whose config tells the shapes of its parts."""

    config: SViTConfig


class PooledClassifier(nn.Module):
    """Put a linear classifier on a base model that has none of its own in Transformers."""

    def __init__(self, base: nn.Module, num_features: int):
        super().__init__()
        self.base = base
        self.classifier = nn.Linear(num_features, NUM_LABELS)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, NUM_LABELS)`."""
        return self.classifier(self.base(pixel_values).pooler_output)


def _swin_t(image_size: int) -> nn.Module:
    # no dropped paths: what they would save differs from draw to draw
    return SwinForImageClassification(SwinConfig(image_size=image_size, drop_path_rate=0.0, **_HEAD))


def _convnext_t(image_size: int) -> nn.Module:
    return ConvNextForImageClassification(ConvNextConfig(image_size=image_size, **_HEAD))


def _pvt_v2_b2(image_size: int) -> nn.Module:
    config = PvtV2Config(image_size=image_size, depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], **_HEAD)
    return PvtV2ForImageClassification(config)


def _dinov3_convnext_t(image_size: int) -> nn.Module:
    widths = [96, 192, 384, 768]
    config = DINOv3ConvNextConfig(image_size=image_size, hidden_sizes=widths)
    return PooledClassifier(DINOv3ConvNextModel(config), widths[-1])


def _hiera_t(image_size: int) -> nn.Module:
    config = HieraConfig(image_size=[image_size, image_size], depths=[1, 2, 7, 2], **_HEAD)
    return HieraForImageClassification(config)


# layouts of about the size of SViT-S, as their authors publish them
PEERS: dict[str, Callable[[int], nn.Module]] = {
    "swin-t": _swin_t,
    "convnext-t": _convnext_t,
    "pvt-v2-b2": _pvt_v2_b2,
    "dinov3-convnext-t": _dinov3_convnext_t,
    "hiera-t": _hiera_t,
}


def svit_network(model: str, super_token_sizes: list[int] | None = None) -> SViTNetwork:
    """Return SViT as a published layout, or from a folder.

    Args:
        model: A name in `LAYOUTS`, or a folder that `save_pretrained` wrote.
        super_token_sizes: Cells to use instead of those of the config; weights do not depend on them.

    Raises:
        SViTError: If `model` is neither.
    """
    cells: dict[str, Any] = {} if super_token_sizes is None else {"super_token_sizes": super_token_sizes}
    suffix = "" if super_token_sizes is None else f" cells {' '.join(map(str, super_token_sizes))}"
    if model in LAYOUTS:
        config = getattr(SViTConfig, model)(num_labels=NUM_LABELS, **cells)

        def build(image_size: int) -> nn.Module:
            return _with_lively_norms(SViTForImageClassification(config))

        return SViTNetwork(f"svit-{model}{suffix}", build, config)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise SViTError(
            f"`model` is {model!r}, which is neither one of {', '.join(LAYOUTS)} nor a folder with a config.json."
        )
    try:
        config = SViTConfig.from_pretrained(folder, **cells)
    except ValueError as error:
        raise SViTError(f"`model` is {model!r}, whose config.json cannot be used: {error}") from error
    return SViTNetwork(
        f"{folder.name}{suffix}",
        lambda image_size: SViTForImageClassification.from_pretrained(folder, **cells),
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
        raise SViTError(
            f"`peers` has {name!r}; allowed are {', '.join(PEERS)}, and models of timm once that is installed."
        )
    import timm

    if not timm.is_model(name):
        raise SViTError(f"`peers` has {name!r}; allowed are {', '.join(PEERS)}, and what `timm.list_models()` lists.")
    # layouts with a fixed size take it as an argument, the others refuse the argument
    return Network(f"timm {name}", lambda image_size: _create_timm_model(timm.create_model, name, image_size))


def count_macs(model: nn.Module, image_size: int) -> int | None:
    """Count the multiply-accumulates of one image: convolutions, matrix products and attention.

    Args:
        model: A classifier of this module; it stays as it is.
        image_size: Edge in pixels.

    Returns:
        The count, or `None` where the network cannot be run without data.
    """
    counted: Any = copy.deepcopy(model).to("meta").eval()
    if hasattr(counted, "set_attn_implementation"):
        # the counter does not know every fused attention
        counted.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            counted(torch.empty(1, 3, image_size, image_size, device="meta"))
        except (NotImplementedError, RuntimeError):
            return None
    return int(counter.get_total_flops()) // 2


def made_up_images(batch_size: int, image_size: int, num_channels: int = 3) -> torch.Tensor:
    """Return images that differ at large and at fine scale, `(B, num_channels, image_size, image_size)`."""
    size = (image_size, image_size)
    coarse = F.interpolate(torch.randn(batch_size, num_channels, 8, 8), size=size, mode="bilinear")
    return coarse + 0.5 * torch.randn(batch_size, num_channels, *size)


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits, whether a model returns them or an object that has them."""
    logits: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    return logits


def _create_timm_model(create_model: Callable[..., nn.Module], name: str, image_size: int) -> nn.Module:
    try:
        return create_model(name, num_classes=NUM_LABELS, img_size=image_size)
    except TypeError:
        return create_model(name, num_classes=NUM_LABELS)


@torch.no_grad()
def _with_lively_norms(model: nn.Module) -> nn.Module:
    """Give norms and layer scales values as after training, and batch norms the statistics of a made-up batch.

    Fresh ones are the identity: whoever left one out, or folded it wrongly, would still give the right logits, and
    the correctness gate would see nothing. With statistics that fit, logits depend on the image, too.
    """
    momenta = {}
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.0, 0.1)
        if isinstance(module, _BatchNorm):
            momenta[module], module.momentum = module.momentum, 1.0
        if isinstance(module, SViTLayerScale):
            module.scale.normal_(0.5, 0.1)
    model.train()
    model(made_up_images(4, 64))
    for module, momentum in momenta.items():
        module.momentum = momentum
    return model
