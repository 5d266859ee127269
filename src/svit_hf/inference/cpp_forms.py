# SPDX-License-Identifier: Apache-2.0
"""The layers of a folded model as they run by operators in C++ (`cpp/`), on a CPU, in float32 and bfloat16.

Wherever an operator cannot run (another device, a compiler, an exporter, autocast), or something wants to see what is
inside (hooks), a layer computes as it does without it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from svit_hf.inference.cpp import build
from svit_hf.inference.cpu_forms import (
    CPU_ATTENTION,
    FusedConvFFN,
    PackedConvolution,
    PackedWeights,
    can_run_plainly,
    is_watched,
)
from svit_hf.model.modeling_svit import (
    SViTConvLayer,
    SViTConvPositionEmbedding,
    SViTDepthwiseResidual,
    SViTLayer,
    SViTPreTrainedModel,
    SViTSelfAttention,
    SViTSuperTokenAttention,
)


# channels that fill registers, whatever their length
_MULTIPLE = 16
# of the samplers, whether cells outside of the grid are masked
_MASKED = {"soft": False, "soft_masked": True}


def use_cpp_forms(folded: SViTPreTrainedModel) -> None:
    """Let a folded model that has the forms for CPUs use the operators in C++, in place.

    Raises:
        SViTError: If they cannot be compiled, or cannot run here.
    """
    build()
    forms: dict[type[nn.Module], type[nn.Module]] = {
        SViTConvPositionEmbedding: CppPositionEmbedding,
        SViTSelfAttention: CppSelfAttention,
        SViTSuperTokenAttention: CppSuperTokenAttention,
        FusedConvFFN: CppConvFFN,
        SViTLayer: CppLayer,
    }
    for module in list(folded.modules()):
        if type(module) is SViTConvLayer and type(module.activation) is GELUActivation:
            module.__class__ = CppConvLayer
        elif type(module) in forms:
            module.__class__ = forms[type(module)]


class CppConvLayer(SViTConvLayer):
    """A layer of the stem, whose GELU and batch norm are one pass over memory."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolve, activate, normalise."""
        convolution, norm = self.convolution, self.batch_norm
        if (
            type(norm) is not nn.BatchNorm2d
            or is_watched(self.activation, norm)
            or convolution.out_channels % _MULTIPLE
            or not can_run_plainly(hidden_states, convolution.weight)
        ):
            return super().forward(hidden_states)
        states: torch.Tensor = convolution(hidden_states).contiguous(memory_format=torch.channels_last)
        statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
        torch.ops.svit_hf_cpp.gelu_and_normalize_(states, *statistics, norm.eps)
        return states


class CppPositionEmbedding(PackedWeights, SViTConvPositionEmbedding):
    """A position embedding in one operator."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolve; the weights have taken the shortcut in."""
        if hidden_states.shape[1] % _MULTIPLE or not _is_plain_depthwise(self, hidden_states):
            return super().forward(hidden_states)
        convolution: Any = self.convolution
        weight, bias = convolution.weight, convolution.bias
        packed = self.pack([weight, bias], lambda: (weight.detach().flatten(1).t().float().contiguous(), bias.float()))
        convolved: torch.Tensor = torch.ops.svit_hf_cpp.depthwise(hidden_states, *packed)
        return convolved


class CppSelfAttention(PackedWeights, SViTSelfAttention):
    """Self-attention in one operator, which can take a norm before it and a shortcut behind it along."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend, without returning weights."""
        if not self.can_run(hidden_states):
            return super().forward(hidden_states, **kwargs)
        return self.run_operator(hidden_states), None

    def can_run(self, hidden_states: torch.Tensor) -> bool:
        """Whether the operator can run, and nothing wants to see what is inside."""
        return (
            self.config._attn_implementation == CPU_ATTENTION
            and type(self.qkv) is type(self.projection) is PackedConvolution
            and not is_watched(self.qkv, self.projection)
            and self.head_dim % _MULTIPLE == 0
            and can_run_plainly(hidden_states, self.qkv.weight)
        )

    def run_operator(
        self, hidden_states: torch.Tensor, norm: nn.LayerNorm | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalise, attend, project, and add the result to `residual`."""
        qkv: Any = self.qkv
        projection: Any = self.projection
        parameters = [qkv.weight, qkv.bias, projection.weight, projection.bias]

        def pack() -> list[torch.Tensor]:
            bias = qkv.weight.new_zeros(len(qkv.weight)) if qkv.bias is None else qkv.bias
            matrices = _matrices_of([qkv.weight, bias, projection.weight, projection.bias])
            packed: list[torch.Tensor] = torch.ops.svit_hf_cpp.pack_attention(
                *matrices, self.num_heads, self.scaling, qkv.weight.dtype
            )
            return packed

        packed = self.pack([each for each in parameters if each is not None], pack)
        weights = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        attended: torch.Tensor = torch.ops.svit_hf_cpp.attention(hidden_states, packed, *weights, residual)
        return attended


class CppSuperTokenAttention(SViTSuperTokenAttention):
    """Super token attention in three operators, or in one where every token is a super token."""

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the attended tokens, added to `residual` if there is one, the super tokens and the association."""
        attention: Any = self.self_attention
        if not self.can_run(hidden_states):
            attended, super_tokens, association = super().forward(hidden_states, **kwargs)
            return attended if residual is None else residual + attended, super_tokens, association
        if self.cell_size == (1, 1):
            return attention.run_operator(hidden_states, self.norm, residual), None, None
        operators, norm, is_masked = torch.ops.svit_hf_cpp, self.norm, _MASKED[self.sampler]
        super_tokens, association = operators.sample_super_tokens(
            hidden_states, norm.weight, norm.bias, norm.eps, *self.cell_size, is_masked
        )
        attended = attention(super_tokens, **kwargs)[0]
        return operators.upsample_tokens(attended, association, *self.cell_size, residual), super_tokens, association

    def can_run(self, hidden_states: torch.Tensor) -> bool:
        """Whether the operators can run, and nothing wants to see what is inside."""
        norm, attention = self.norm, self.self_attention
        channels, height, width = hidden_states.shape[1:]
        if (
            type(norm) is not nn.LayerNorm
            or norm.weight is None
            or norm.bias is None
            or is_watched(norm)
            or channels % _MULTIPLE
            or not can_run_plainly(hidden_states, norm.weight)
        ):
            return False
        if self.cell_size == (1, 1):
            return (
                type(attention) is CppSelfAttention and not is_watched(attention) and attention.can_run(hidden_states)
            )
        whole_cells = height % self.cell_size[0] == 0 and width % self.cell_size[1] == 0
        return whole_cells and self.num_iterations == 1 and self.sampler in _MASKED


class CppConvFFN(PackedWeights, FusedConvFFN):
    """A feed-forward in one operator, whose wide map is in memory only in parts that fit into the cache."""

    def __call__(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the feed-forward, and add it to `residual` if there is one."""
        if not self.can_run(hidden_states):
            mixed = super().__call__(hidden_states)
            return mixed if residual is None else residual + mixed
        fc1, depthwise, fc2 = self.fc1, self.depthwise.convolution, self.fc2
        parameters: Any = (fc1.weight, fc1.bias, depthwise.weight, depthwise.bias, fc2.weight, fc2.bias)
        packed = self.pack(
            parameters,
            lambda: torch.ops.svit_hf_cpp.pack_feed_forward(*_matrices_of(parameters), fc1.weight.dtype),
        )
        mixed = torch.ops.svit_hf_cpp.feed_forward(hidden_states, packed, residual)
        return mixed

    def can_run(self, hidden_states: torch.Tensor) -> bool:
        """Whether the operator can run, and nothing wants to see what is inside."""
        return (
            type(self.fc1) is type(self.fc2) is PackedConvolution
            and not is_watched(self, self.fc1, self.activation, self.depthwise, self.fc2)
            # products of bfloat16 take pairs of channels
            and hidden_states.shape[1] % 2 == 0
            and _is_plain_depthwise(self.depthwise, hidden_states)
        )


class CppLayer(SViTLayer):
    """A layer whose attention and feed-forward take their shortcuts along."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embed positions, attend, mix."""
        between = self.dropout, self.drop_path, self.layer_scale1, self.layer_scale2, self.mlp_norm
        if (
            type(self.attention) is not CppSuperTokenAttention
            or type(self.mlp) is not CppConvFFN
            or not all(type(each) is nn.Identity for each in between[2:])
            or is_watched(*between, self.attention)
            # kernels of GPUs have taken the place of a method
            or "add_mixed" in vars(self)
        ):
            return super().forward(hidden_states, *args, **kwargs)
        hidden_states = self.position_embedding(hidden_states)
        hidden_states = self.attention(hidden_states, residual=hidden_states, **kwargs)[0]
        return self.mlp(hidden_states, residual=hidden_states)


def _matrices_of(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return weights and biases of convolutions as matrices and vectors."""
    return [each.detach().flatten(1) if each.ndim == 4 else each.detach() for each in parameters]


def _is_plain_depthwise(module: SViTDepthwiseResidual, hidden_states: torch.Tensor) -> bool:
    convolution = getattr(module, "convolution", None)
    return (
        type(convolution) is PackedConvolution
        and not module.has_shortcut
        and not is_watched(convolution)
        and can_run_plainly(hidden_states, convolution.weight)
    )
