# SPDX-License-Identifier: Apache-2.0
"""What a folded model computes in its own way on a CPU: convolutions, GELU after some, attention in bfloat16.

Wherever that cannot run (another device, a compiler, an exporter, autocast), everything is as in the model's own code.
PyTorch keeps the convolution of oneDNN that takes packed weights and an activation for its compiler; it is private,
and used only where it exists.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from svit_hf.model.modeling_svit import SViTConvFFN, SViTPreTrainedModel


# the attention function of a folded model, in the words of its config
CPU_ATTENTION = "svit_cpu"
# attention weights of a call below which SDPA is as fast, and of as many heads as are computed at once: bfloat16 that
# stays in the cache of a core
_FEWEST_WEIGHTS, _WEIGHTS_AT_ONCE = 2**14, 2**20


def use_cpu_forms(folded: SViTPreTrainedModel) -> None:
    """Let a folded model use what is in this file, in place."""
    for module in list(folded.modules()):
        if type(module) is nn.Conv2d:
            module.__class__ = PackedConvolution
        if type(module) is SViTConvFFN and type(module.activation) is GELUActivation:
            module.__class__ = FusedConvFFN
    if folded.config._attn_implementation == "sdpa":
        folded.set_attn_implementation(CPU_ATTENTION)


class PackedWeights(nn.Module):
    """A module that stores its weights once more, in an order that is faster; that is neither copied nor saved."""

    # what was packed (addresses and versions of the weights, and whatever else the order depends on), and the result:
    # one value, so that threads that share a model never see one without the other
    packed: tuple[tuple[Any, ...], Any] | None = None

    def pack(self, parameters: Sequence[torch.Tensor], pack: Callable[[], Any], *conditions: Any) -> Any:
        """Return what `pack` makes of parameters, made anew only where these or the conditions have changed."""
        states = [(each.data_ptr(), None if each.is_inference() else each._version) for each in parameters]
        wanted, packed = (*states, *conditions), self.packed
        if packed is None or packed[0] != wanted:
            self.packed = packed = (wanted, pack())
        return packed[1]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # what moves or converts the weights
        self.packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "packed"}


class PackedConvolution(PackedWeights, nn.Conv2d):
    """A convolution whose weights are packed as oneDNN wants them."""

    # kernels of GPUs may use the weights in the place of `forward`
    is_plain_elsewhere = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        is_fast = can_run_plainly(hidden_states, self.weight)
        return self.convolve(hidden_states, "none") if is_fast else super().forward(hidden_states)

    def convolve(self, hidden_states: torch.Tensor, activation: str) -> torch.Tensor:
        """Convolve with packed weights; `activation` is `"gelu"` or `"none"`."""
        weight, geometry = self.weight, (self.padding, self.stride, self.dilation, self.groups)
        packed = self.pack(
            [weight],
            lambda: torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *geometry, hidden_states.shape),
            # oneDNN may want another order for others, and bringing one order into another in every call takes longer
            # than the convolution
            hidden_states.shape,
            torch.get_num_threads(),
        )
        return torch.ops.mkldnn._convolution_pointwise(
            hidden_states, packed, self.bias, *geometry, activation, [], "none" if activation == "gelu" else ""
        )


def can_run_plainly(hidden_states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether operators that only know tensors on a CPU can run, here and now."""
    return (
        not torch.compiler.is_compiling()
        and hidden_states.device.type == weight.device.type == "cpu"
        and hidden_states.dtype == weight.dtype
        and _has_fast_convolutions(hidden_states.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def is_watched(*modules: nn.Module) -> bool:
    """Whether some module has to be called: hooks, and what replaced a `forward`, want to see every step."""
    return any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)


class FusedConvFFN(SViTConvFFN):
    """A feed-forward whose first convolution ends with GELU, so that its wide map is written once less.

    `forward` stays that of the model, which kernels may replace.
    """

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Widen and activate in one operation, add the depthwise convolution, narrow."""
        fc1: Any = self.fc1
        if (
            is_watched(self, fc1, self.activation)
            or type(fc1) is not PackedConvolution
            or not can_run_plainly(hidden_states, fc1.weight)
        ):
            return super().__call__(hidden_states)
        return self.fc2(self.depthwise(fc1.convolve(hidden_states, "gelu")))


def _has_fast_convolutions(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.enabled or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as SDPA, but in bfloat16 on a CPU, where that is no faster than in float32, by two matrix products.

    Query, key and value have the shape `(B, A, N, D)`; returned are the attended values, `(B, N, A, D)`, and None.
    """
    batch_size, num_heads, length, width = query.shape
    if (
        query.dtype != torch.bfloat16
        or query.device.type != "cpu"
        or torch.compiler.is_compiling()
        or attention_mask is not None
        or scaling is None
        or query.shape != key.shape
        or batch_size * num_heads * length**2 < _FEWEST_WEIGHTS
        or not _has_fast_convolutions(query.dtype)
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key, value = (states.reshape(-1, length, width) for states in (query, key, value))
    attended = torch.empty_like(value)
    heads_at_once = max(1, _WEIGHTS_AT_ONCE // length**2)
    parts = (states.split(heads_at_once) for states in (query, key, value, attended))
    for some_query, some_key, some_value, some_attended in zip(*parts, strict=True):
        nothing = some_query.new_empty(1, 1, 1)
        weights = torch.baddbmm(nothing, some_query, some_key.transpose(-2, -1), beta=0, alpha=scaling).softmax(-1)
        torch.bmm(weights, some_value, out=some_attended)
    return attended.unflatten(0, (batch_size, num_heads)).transpose(1, 2).contiguous(), None


AttentionInterface.register(CPU_ATTENTION, cpu_attention_forward)
AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
