# SPDX-License-Identifier: Apache-2.0
"""The architecture of official weights, read off the shapes of their tensors.

Source: layouts of hhb072/STViT@c9ed9a4 (`models/stvit.py`).
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
