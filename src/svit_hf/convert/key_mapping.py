# SPDX-License-Identifier: Apache-2.0
"""Names of the official checkpoints and ours: one table, readable in both directions.

Names, and the one shape that differs; the tensors themselves are `official.py`'s affair.

Source: the state dict of `STViT` in hhb072/STViT@c9ed9a4 (`models/stvit.py`).
"""

import re


_BLOCK = "layers.{stage}.blocks.{layer}"
_LAYER = "svit.stages.{stage}.layers.{layer}"

# official module or parameter -> ours; what follows the name (`.weight`, `.running_mean`, ...) stays as it is
RENAMED = {
    # activations sit between the convolutions and the norms of the stem
    "patch_embed.proj.0": "svit.embeddings.layers.0.convolution",
    "patch_embed.proj.2": "svit.embeddings.layers.0.batch_norm",
    "patch_embed.proj.3": "svit.embeddings.layers.1.convolution",
    "patch_embed.proj.5": "svit.embeddings.layers.1.batch_norm",
    "patch_embed.proj.6": "svit.embeddings.layers.2.convolution",
    "patch_embed.proj.8": "svit.embeddings.layers.2.batch_norm",
    "patch_embed.proj.9": "svit.embeddings.layers.3.convolution",
    "patch_embed.proj.11": "svit.embeddings.layers.3.batch_norm",
    f"{_BLOCK}.pos_embed.conv": f"{_LAYER}.position_embedding.convolution",
    f"{_BLOCK}.norm1.norm": f"{_LAYER}.attention.norm",
    # head-major rows (D of query, D of key, D of value for each head) on both sides
    f"{_BLOCK}.attn.stoken_refine.qkv": f"{_LAYER}.attention.self_attention.qkv",
    f"{_BLOCK}.attn.stoken_refine.proj": f"{_LAYER}.attention.self_attention.projection",
    f"{_BLOCK}.gamma_1": f"{_LAYER}.layer_scale1.scale",
    f"{_BLOCK}.norm2": f"{_LAYER}.mlp_norm",
    f"{_BLOCK}.mlp2.fc1": f"{_LAYER}.mlp.fc1",
    f"{_BLOCK}.mlp2.conv.conv": f"{_LAYER}.mlp.depthwise.convolution",
    f"{_BLOCK}.mlp2.fc2": f"{_LAYER}.mlp.fc2",
    f"{_BLOCK}.gamma_2": f"{_LAYER}.layer_scale2.scale",
    # the official downsampling ends a stage, ours begins the next one
    "layers.{stage}.downsample.proj.0": "svit.stages.{next_stage}.downsampling.convolution",
    "layers.{stage}.downsample.proj.1": "svit.stages.{next_stage}.downsampling.batch_norm",
    "proj": "svit.pooler.projection",
    "norm": "svit.pooler.batch_norm",
    "head": "classifier",
}

# official tensor -> why it is left behind
DROPPED = {
    f"{_BLOCK}.attn.unfold.weights": "a constant identity that cuts out 3x3 neighbours; ours is a slice",
    f"{_BLOCK}.attn.fold.weights": "a constant identity that adds up 3x3 neighbours; ours is a sum of slices",
}

# no model has more stages or layers, and longer numbers take Python ever longer
_INDEX = "0|[1-9][0-9]{0,3}"
_INDICES = {
    "stage": f"(?P<stage>{_INDEX})",
    "next_stage": "(?P<next_stage>[1-9][0-9]{0,3})",
    "layer": f"(?P<layer>{_INDEX})",
}


def _pattern(template: str, suffix: str = "") -> re.Pattern[str]:
    return re.compile(template.replace(".", r"\.").format(**_INDICES) + suffix)


_SUFFIX = r"(?P<suffix>(\.\w+)?)"
_TO_OURS = [(_pattern(official, _SUFFIX), ours) for official, ours in RENAMED.items()]
_TO_OFFICIAL = [(_pattern(ours, _SUFFIX), official) for official, ours in RENAMED.items()]
_DROPPED = [_pattern(official) for official in DROPPED]


def to_ours(official_key: str) -> str | None:
    """Return our name of an official tensor, or `None` if the table has none."""
    return _rename(official_key, _TO_OURS)


def to_official(our_key: str) -> str | None:
    """Return the official name of one of our tensors, or `None` if the table has none."""
    return _rename(our_key, _TO_OFFICIAL)


def official_shape(our_key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the official shape of one of our tensors: a layer scale is `(1, C, 1, 1)` there, and `(C,)` here."""
    return (1, *shape, 1, 1) if our_key.endswith(".scale") else shape


def is_dropped(official_key: str) -> bool:
    """Return whether an official tensor is left behind on purpose."""
    return any(pattern.fullmatch(official_key) for pattern in _DROPPED)


def _rename(key: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in table:
        match = pattern.fullmatch(key)
        if match:
            found = match.groupdict()
            stage = int(found["next_stage"]) - 1 if found.get("next_stage") else int(found.get("stage") or 0)
            return template.format(stage=stage, next_stage=stage + 1, layer=found.get("layer")) + found["suffix"]
    return None
