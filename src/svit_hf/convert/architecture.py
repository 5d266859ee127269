# SPDX-License-Identifier: Apache-2.0
"""The architecture of official weights, read off the shapes of their tensors, and what these are called here.

Of names there is one table, readable in both directions; the tensors themselves are `official.py`'s affair.

Source: layouts, and the state dict of `STViT`, of hhb072/STViT@c9ed9a4 (`models/stvit.py`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError

from svit_hf.errors import ConversionError
from svit_hf.model.configuration_svit import SViTConfig


VariantName = Literal["auto", "small", "base", "large"]

VARIANTS = {"small": SViTConfig.small, "base": SViTConfig.base, "large": SViTConfig.large}
# the fields that leave no trace in any tensor
FIELDS_WITHOUT_SHAPE = ("num_attention_heads", "super_token_sizes", "num_sampling_iterations")


def infer_config(
    state_dict: Mapping[str, torch.Tensor], variant: VariantName = "auto", config: Mapping[str, Any] | None = None
) -> SViTConfig:
    """Read the architecture off the shapes of official weights.

    Widths, depths, hidden ratio, projection, image channels, labels, bias of the queries and layer scale show in the
    shapes. Heads, cells and iterations do not: they come from `variant` or from `config`.

    Args:
        state_dict: Official weights.
        variant: A published model, or `"auto"` to recognise one by widths and depths.
        config: Fields of `SViTConfig` that win over everything else.

    Returns:
        The configuration. It fits the weights if they are consistent, which `build_model` checks.

    Raises:
        ConversionError: If something cannot be told, contradicts `variant`, or is not possible.
    """
    overrides = dict(config or {})
    _check_fields(overrides)
    fields = _fields_from_shapes(state_dict)
    found = find_variant(fields["hidden_sizes"], fields["depths"])
    layout = f"widths {fields['hidden_sizes']} and depths {fields['depths']}"
    if variant not in ("auto", found):
        raise ConversionError(
            f"`variant` is {variant!r}, but the checkpoint has {layout}: {found or 'none'} of {[*VARIANTS]}."
        )
    if found is not None:
        published = VARIANTS[found]()
        fields |= {name: getattr(published, name) for name in FIELDS_WITHOUT_SHAPE}
    num_labels = fields["num_labels"]
    if "id2label" in overrides:
        del fields["num_labels"]
    fields |= overrides
    untold = [name for name in FIELDS_WITHOUT_SHAPE if name not in fields]
    if untold:
        raise ConversionError(
            f"The checkpoint has {layout}, like none of {[*VARIANTS]}, and shapes do not tell {', '.join(untold)}; "
            "give them in `config`."
        )
    try:
        inferred = SViTConfig.from_dict(fields)
    # what a hand-written file can hold fails in many ways, not all of them foreseen by the config
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"The checkpoint and `config` give no possible architecture: {error}") from error
    if inferred.num_labels != num_labels:
        raise ConversionError(f"`config` names {inferred.num_labels} classes; the checkpoint has {num_labels}.")
    return inferred


def _check_fields(config: Mapping[str, Any]) -> None:
    # the keys of a saved config.json, so that such a file can be given as it is
    allowed = SViTConfig().to_dict().keys() | {"num_labels"}  # type: ignore[no-untyped-call]
    unknown = sorted(config.keys() - allowed)
    if unknown:
        raise ConversionError(f"`config` has {unknown}; allowed are {sorted(allowed)}.")


def find_variant(hidden_sizes: Sequence[int], depths: Sequence[int]) -> str | None:
    """Return the name of the published model of these widths and depths, or `None` if there is none."""
    for name, build in VARIANTS.items():
        published = build()
        if (list(hidden_sizes), list(depths)) == (published.hidden_sizes, published.depths):
            return name
    return None


def _fields_from_shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    def size(pattern: str, axis: int = 0) -> int | None:
        # the majority, so that one wrong tensor is reported as wrong and not taken for another architecture
        sizes = Counter(
            value.shape[axis]
            for key, value in state_dict.items()
            if re.fullmatch(pattern, key) and value.ndim > axis and value.shape[axis] > 0
        )
        return sizes.most_common(1)[0][0] if sizes else None

    def any_key(pattern: str) -> bool:
        return any(re.fullmatch(pattern, key) for key in state_dict)

    found = (re.match(r"layers\.([0-9]{1,4})\.blocks\.([0-9]{1,4})\.", key) for key in state_dict)
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    stages = range(len({stage for stage, _ in blocks}))
    widths = [size(rf"layers\.{stage}\.blocks\.\d+\.(pos_embed\.conv|norm1\.norm|norm2)\.\w+") for stage in stages]
    if not widths or widths[0] is None or None in widths:
        raise ConversionError(
            "The weights are not those of an official SViT: tensors like `layers.I.blocks.J.norm2.weight` are missing "
            f"for some stage I, or for all; the first keys are {list(state_dict)[:5]}."
        )
    hidden = size(r"layers\.0\.blocks\.\d+\.mlp2\.(fc1|conv\.conv)\.\w+")
    # where a tensor is missing, the default stands in, and the check against the model reports the tensor
    sizes = {
        "num_channels": size(r"patch_embed\.proj\.0\.weight", axis=1),
        "mlp_ratio": None if hidden is None else hidden / widths[0],
        "projection_dim": size(r"(proj|norm)\.\w+"),
        "num_labels": size(r"head\.\w+") if any_key(r"head\.\w+") else 0,
    }
    return {name: value for name, value in sizes.items() if value is not None} | {
        "hidden_sizes": widths,
        "depths": [sum(stage == own for own, _ in blocks) for stage in stages],
        "qkv_bias": any_key(r".*\.stoken_refine\.qkv\.bias"),
        "use_layer_scale": [any_key(rf"layers\.{stage}\.blocks\.\d+\.gamma_[12]") for stage in stages],
    }


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
