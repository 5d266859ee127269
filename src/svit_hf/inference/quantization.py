# SPDX-License-Identifier: Apache-2.0
"""int8 by torchao: a folded copy whose projections compute in 8 bits.

torchao rounds the weights of `nn.Linear`, and the projections of this model are 1x1 convolutions
(docs/decisions/0002-pointwise-convolutions.md), which are the same arithmetic on the same memory.
"""

from typing import TypeVar

import torch
from torch import nn

from svit_hf.errors import SViTError
from svit_hf.extras import install_hint, missing_packages
from svit_hf.inference.folding import fold_weights, plain_convolution
from svit_hf.model.modeling_svit import SViTConvFFN, SViTPooler, SViTPreTrainedModel, SViTSelfAttention


Model = TypeVar("Model", bound=SViTPreTrainedModel)

# what mixes channels at every position, by owner; all are 1x1 convolutions
_PROJECTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    SViTSelfAttention: ("qkv", "projection"),
    SViTConvFFN: ("fc1", "fc2"),
    SViTPooler: ("projection",),
}


class PointwiseLinear(nn.Linear):
    """A 1x1 convolution as a linear layer: `(B, C_in, H, W)` to `(B, C_out, H, W)`.

    In channels_last memory, tokens are rows already and nothing is copied.

    Args:
        convolution: The convolution, whose weights are copied.
    """

    def __init__(self, convolution: nn.Conv2d):
        weight = convolution.weight
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            bias=convolution.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            self.weight.copy_(weight.flatten(1))
            if convolution.bias is not None:
                self.bias.copy_(convolution.bias)
        self.requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Mix channels."""
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def quantize_for_inference(model: Model) -> Model:
    """Return a folded copy of a model whose projections and classifier compute in int8, for inference on a CPU.

    Weights are rounded once, to 8 bits with a scale per output channel. Activations are rounded as they come, with a
    scale per token, so that no pictures are needed for calibration. Stem, downsampling, depthwise convolutions, norms,
    attention and super-token sampling stay in float32. Like a folded copy, it is of the same class, shares nothing
    with `model`, and refuses training, gradients, saving and pushing.

    Args:
        model: `SViTForImageClassification`, `SViTModel` or `SViTBackbone` in float32, in memory and not yet folded.

    Returns:
        The quantised copy. Its outputs differ by 8 bits of rounding: see docs/guides/inference.md.

    Raises:
        SViTError: If torchao is missing, `model` is no such model, or has weights that do not fold.
    """
    if missing_packages("quantization"):
        raise SViTError(f"int8 in PyTorch needs torchao; install it with: {install_hint('quantization')}")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    if isinstance(model, SViTPreTrainedModel) and model.dtype != torch.float32:
        raise SViTError(f"`model` is in {model.dtype}; int8 is made of a model in torch.float32.")
    quantized = fold_weights(model)
    for owner in quantized.modules():
        for name in _PROJECTIONS.get(type(owner), ()):
            # a model without a part has nothing to round there
            if not isinstance(getattr(owner, name), nn.Identity):
                owner.register_module(name, PointwiseLinear(plain_convolution(owner, name)))
    quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    return quantized
