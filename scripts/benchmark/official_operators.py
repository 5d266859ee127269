# SPDX-License-Identifier: Apache-2.0
"""The operators of the official release, hhb072/STViT@c9ed9a4, with the weights of one of our models.

Written for timing side by side: the same tensors in the same layouts through the same kinds of operators (NCHW,
neighbourhoods by one-hot convolution, attention with explicit weights), under the official parameter names.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from svit_hf.convert.key_mapping import is_dropped, official_shape, to_official


# official name -> field of SViTConfig
OFFICIAL_FIELDS = {
    "embed_dim": "hidden_sizes",
    "depths": "depths",
    "num_heads": "num_attention_heads",
    "stoken_size": "super_token_sizes",
    "n_iter": "num_sampling_iterations",
    "layerscale": "use_layer_scale",
    "projection": "projection_dim",
    "num_classes": "num_labels",
}


def with_official_operators(model: Any) -> nn.Module:
    """Return the official network with the weights of a `SViTForImageClassification`."""
    config = {name: getattr(model.config, field) for name, field in OFFICIAL_FIELDS.items()}
    official = OfficialNetwork(config, model.config.drop_path_rate)
    state = {
        to_official(key): tensor.reshape(official_shape(key, tuple(tensor.shape)))
        for key, tensor in model.state_dict().items()
    }
    missing, unexpected = official.load_state_dict(state, strict=False)
    # of these the official code makes constants
    assert not [*unexpected, *(key for key in missing if not is_dropped(key))], f"{unexpected}, {missing}"
    return official.train(model.training)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class _ChannelNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x):
        rows = x.permute(0, 2, 3, 1).contiguous()
        return self.norm(rows).permute(0, 3, 1, 2).contiguous()


class _DepthwiseResidual(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x):
        return x + self.conv(x)


class _OneHotWindow(nn.Module):
    """Gather (or, transposed, scatter-add) the 3x3 neighbourhood with a fixed one-hot kernel."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.eye(9).reshape(9, 1, 3, 3), requires_grad=False)

    def gather(self, x):
        b, c, h, w = x.shape
        return F.conv2d(x.reshape(b * c, 1, h, w), self.weights, padding=1).reshape(b, c * 9, h * w)

    def scatter(self, x):
        return F.conv_transpose2d(x, self.weights, padding=1)


class _GridAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        packed = self.qkv(x).reshape(b, self.heads, 3 * (c // self.heads), h * w)
        query, key, value = packed.chunk(3, dim=2)
        weights = ((key.transpose(-1, -2) @ query) * self.scale).softmax(dim=-2)
        return self.proj((value @ weights).reshape(b, c, h, w))


class _SuperTokenMixing(nn.Module):
    def __init__(self, dim, heads, cell, iterations):
        super().__init__()
        self.cell, self.iterations, self.scale = cell, iterations, dim**-0.5
        self.unfold, self.fold = _OneHotWindow(), _OneHotWindow()
        self.stoken_refine = _GridAttention(dim, heads)

    def forward(self, x):
        s = self.cell
        if s == 1:
            return self.stoken_refine(x)
        b, c, height, width = x.shape
        right, bottom = -width % s, -height % s
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        gh, gw = x.shape[2] // s, x.shape[3] // s
        cells = gh * gw
        tokens = x.reshape(b, c, gh, s, gw, s).permute(0, 2, 4, 3, 5, 1).reshape(b, cells, s * s, c)
        centres = F.adaptive_avg_pool2d(x, (gh, gw))
        with torch.no_grad():
            for step in range(self.iterations):
                near = self.unfold.gather(centres).transpose(1, 2).reshape(b, cells, c, 9)
                assignment = (tokens @ near * self.scale).softmax(-1)
                mass = self.fold.scatter(assignment.sum(2).transpose(1, 2).reshape(b, 9, gh, gw))
                if step + 1 < self.iterations:
                    centres = self._collect(tokens, assignment, gh, gw) / (mass + 1e-12)
        centres = self._collect(tokens, assignment, gh, gw) / (mass.detach() + 1e-12)
        centres = self.stoken_refine(centres)
        near = self.unfold.gather(centres).transpose(1, 2).reshape(b, cells, c, 9)
        out = near @ assignment.transpose(-1, -2)
        out = out.reshape(b, gh, gw, c, s, s).permute(0, 3, 1, 4, 2, 5).reshape(b, c, gh * s, gw * s)
        return out[:, :, :height, :width] if right or bottom else out

    def _collect(self, tokens, assignment, gh, gw):
        b, _, _, c = tokens.shape
        partial = tokens.transpose(-1, -2) @ assignment
        return self.fold.scatter(partial.permute(0, 2, 3, 1).reshape(b * c, 9, gh, gw)).reshape(b, c, gh, gw)


class _ConvFFN(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act1 = nn.Conv2d(dim, hidden, 1), nn.GELU()
        self.conv, self.fc2 = _DepthwiseResidual(hidden), nn.Conv2d(hidden, dim, 1)

    def forward(self, x):
        return self.fc2(self.conv(self.act1(self.fc1(x))))


class _DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


class _Block(nn.Module):
    def __init__(self, dim, heads, cell, iterations, layer_scale, drop_path):
        super().__init__()
        self.pos_embed = _DepthwiseResidual(dim)
        self.norm1 = _ChannelNorm(dim)
        self.attn = _SuperTokenMixing(dim, heads, cell, iterations)
        self.drop_path = _DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp2 = _ConvFFN(dim, 4 * dim)
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((1, dim, 1, 1), 1e-6))
            self.gamma_2 = nn.Parameter(torch.full((1, dim, 1, 1), 1e-6))

    def forward(self, x):
        x = self.pos_embed(x)
        if self.layer_scale:
            x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
            return x + self.drop_path(self.gamma_2 * self.mlp2(self.norm2(x)))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp2(self.norm2(x)))


class _Projected(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.proj = nn.Sequential(*layers)

    def forward(self, x):
        return self.proj(x)


class _Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


def _conv3(inputs, outputs, stride):
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class OfficialNetwork(nn.Module):
    """Classifier with the operators and parameter names of the official release.

    Args:
        config: Values under the keys of `OFFICIAL_FIELDS`.
        drop_path_rate: Of the last block.
    """

    def __init__(self, config, drop_path_rate=0.0):
        super().__init__()
        dims, depths = config["embed_dim"], config["depths"]
        half = dims[0] // 2
        stem = []
        for inputs, outputs, stride in [(3, half, 2), (half, half, 1), (half, dims[0], 2), (dims[0], dims[0], 1)]:
            stem += [_conv3(inputs, outputs, stride), nn.GELU(), nn.BatchNorm2d(outputs)]
        self.patch_embed = _Projected(*stem)
        rates = torch.linspace(0, drop_path_rate, sum(depths)).split(depths)
        self.layers = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = [
                _Block(
                    dim,
                    config["num_heads"][i],
                    config["stoken_size"][i],
                    config["n_iter"][i],
                    config["layerscale"][i],
                    float(rate),
                )
                for rate in rates[i]
            ]
            last = i + 1 == len(dims)
            merge = None if last else _Projected(_conv3(dim, dims[i + 1], 2), nn.BatchNorm2d(dims[i + 1]))
            self.layers.append(_Stage(blocks, merge))
        self.proj = nn.Conv2d(dims[-1], config["projection"], 1)
        self.norm = nn.BatchNorm2d(config["projection"])
        self.head = nn.Linear(config["projection"], config["num_classes"])

    def forward(self, x):
        """Return logits, `(B, num_classes)`."""
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        x = _Swish.apply(self.norm(self.proj(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
