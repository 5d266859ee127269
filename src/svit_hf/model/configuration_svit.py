# Copyright 2026 The svit_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of SViT: one strict, validated dataclass, and the three published layouts.

Source: "Vision Transformer with Super Token Sampling" (Huang et al., CVPR 2023, arXiv 2211.11167), table 1, and the
layouts of hhb072/STViT@c9ed9a4 (`models/stvit.py`).
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

# Transformers before 5.23 copies what a file imports, but not what that imports: it is named here too
from .cells_svit import count_cells  # noqa: F401
from .own_code_svit import write_code
from .samplers_svit import SUPER_TOKEN_SAMPLERS
from .super_tokens_svit import sample_super_tokens  # noqa: F401


# what Transformers knows of the code beside a config.json
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_svit.SViTConfig",
    "AutoModel": "modeling_svit.SViTModel",
    "AutoModelForImageClassification": "modeling_svit.SViTForImageClassification",
    "AutoBackbone": "modeling_svit.SViTBackbone",
}

_PER_STAGE_FIELDS = (
    "depths",
    "num_attention_heads",
    "super_token_sizes",
    "num_sampling_iterations",
    "use_layer_scale",
)


# fields, the values they may have, and how a message says so; no comparison holds for NaN
_RANGES: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
    (("num_channels", "projection_dim"), lambda value: value >= 1, "at least 1"),
    (("mlp_ratio",), lambda value: 0 < value <= 1000, "above 0 and at most 1000"),
    (("layer_norm_eps", "batch_norm_eps"), lambda value: 0 < value <= 1, "above 0 and at most 1"),
    (("initializer_range",), lambda value: 0 < value <= 100, "above 0 and at most 100"),
    (("layer_scale_init_value",), lambda value: abs(value) <= 100, "from -100 to 100"),
    (
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "batch_norm_momentum"),
        lambda value: 0 <= value <= 1,
        "from 0 to 1",
    ),
    (("drop_path_rate",), lambda value: 0 <= value < 1, "at least 0 and below 1"),
]

# fields that name one of several parts, the published one first
_CHOICES = {
    "super_token_mixer": ("attention", "convolution", "none"),
    "feed_forward_kind": ("convolutional", "plain"),
    "stem_kind": ("convolutions", "patches"),
}
_ATTENTION_KINDS = ("super_tokens", "global", "window", "pooled_keys", "none")

logger = logging.get_logger(__name__)


@strict
class SViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Architecture of an SViT model; the defaults are the published small model.

    Every field that is a list has one entry per stage, and any number of stages is allowed. Weights depend neither on
    `super_token_sizes` nor on `num_sampling_iterations`, so both may be changed when a checkpoint is loaded. Unknown
    keywords are kept as attributes, as in all of Transformers; one that is almost the name of a field is warned of.

    Args:
        num_channels: Channels of the input images.
        image_size: Height and width, in pixels, that the model was trained at; one int or a pair. Not a limit: any
            size from 32 pixels up can be fed.
        hidden_sizes: Channels of each stage; the first is even, since the stem starts at half of it.
        depths: Layers of each stage.
        num_attention_heads: Heads of each stage; each divides the channels of its stage.
        super_token_sizes: Cell of a super token in each stage, in tokens: one int, or a `(height, width)` pair.
            1 means plain self-attention among all tokens.
        num_sampling_iterations: Rounds of association and averaging in each stage; only used where the cell is larger
            than 1, and at least 1 there.
        super_token_sampler: How super tokens are sampled, a name in `SUPER_TOKEN_SAMPLERS`. The published weights need
            `"soft"`; `"soft_masked"` leaves cells outside of the grid out of the association. A sampler that learns
            something, as `"cosine"` and `"slots"` do, adds weights to every layer whose cell is larger than 1.
        super_token_mixer: What happens among super tokens: `"attention"`, or for ablations `"convolution"` or
            `"none"`. Where the cell is 1 there is attention in any case.
        attention_kinds: What attends to what, one for all stages or a list: `"super_tokens"` as published, and for
            ablations `"global"` (all tokens to all, as with a cell of 1), `"window"` (within each cell),
            `"pooled_keys"` (all tokens to the means of cells) and `"none"`.
        use_position_embedding: Whether layers start with the convolutional position embedding.
        feed_forward_kind: `"convolutional"`, or `"plain"` without the depthwise convolution.
        stem_kind: `"convolutions"`, or `"patches"`: one convolution of 4x4 pixels.
        use_projection: Whether there is a projection before global pooling; without it, `projection_dim` becomes the
            channels of the last stage.
        mlp_ratio: Hidden channels of the convolutional feed-forward, as a multiple of the stage's channels.
        qkv_bias: Whether queries, keys and values have a bias.
        hidden_act: Activation of the stem and of the feed-forward.
        hidden_dropout_prob: Dropout after the attention and after the feed-forward.
        attention_probs_dropout_prob: Dropout of the attention weights.
        drop_path_rate: Probability of dropping the residual branch of the last layer; it grows linearly from 0 at the
            first layer.
        use_layer_scale: Whether the layers of each stage scale their residual branches, one factor per channel.
        layer_scale_init_value: Initial value of these factors.
        projection_dim: Channels of the 1x1 projection before global pooling, that is of `pooler_output`; also what
            `hidden_size` answers.
        layer_norm_eps: Epsilon of the layer norms.
        batch_norm_eps: Epsilon of the batch norms.
        batch_norm_momentum: Weight of the newest batch in the running statistics of the batch norms.
        initializer_range: Standard deviation of the truncated normal that initialises linear layers. Convolutions keep
            PyTorch's default, as in the official code.
        normalize_features: Whether `SViTBackbone` has a layer norm for each of its feature maps, which published
            weights do not have.
        out_features: Stages that `SViTBackbone` returns, names out of `stage_names`; the last one by default.
        out_indices: The same as positions in `stage_names`.

    Raises:
        StrictDataclassFieldValidationError: If a field has the wrong type.
        ValueError: If a value, or a combination of values, is not possible; the message names the field.

    Example:
        >>> from svit_hf import SViTConfig
        >>> config = SViTConfig.base(num_labels=10)
        >>> config.hidden_sizes
        [96, 192, 384, 512]
    """

    model_type = "svit"
    # what `auto_map` becomes where the code is saved too
    code_auto_map = MODEL_AUTO_MAP

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    depths: list[int] | tuple[int, ...] = (3, 5, 9, 3)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    super_token_sizes: list[int | list[int] | tuple[int, int]] | tuple[int | list[int] | tuple[int, int], ...] = (
        8,
        4,
        1,
        1,
    )
    num_sampling_iterations: list[int] | tuple[int, ...] = (1, 1, 1, 1)
    super_token_sampler: str = "soft"
    super_token_mixer: str = "attention"
    attention_kinds: str | list[str] | tuple[str, ...] = "super_tokens"
    use_position_embedding: bool = True
    feed_forward_kind: str = "convolutional"
    stem_kind: str = "convolutions"
    use_projection: bool = True
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    use_layer_scale: list[bool] | tuple[bool, ...] = (False, False, False, False)
    layer_scale_init_value: float | int = 1e-6
    projection_dim: int = 1024
    layer_norm_eps: float | int = 1e-6
    batch_norm_eps: float | int = 1e-5
    batch_norm_momentum: float | int = 0.1
    initializer_range: float | int = 0.02
    normalize_features: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._warn_of_misspelled_fields(kwargs)
        # lists of our own: JSON gives lists back, and no two configs may share one
        self.hidden_sizes = list(self.hidden_sizes)
        for name in _PER_STAGE_FIELDS:
            setattr(self, name, list(getattr(self, name)))
        self.super_token_sizes = [cell if isinstance(cell, int) else list(cell) for cell in self.super_token_sizes]
        self.image_size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        self.attention_kinds = (
            self.attention_kinds if isinstance(self.attention_kinds, str) else list(self.attention_kinds)
        )
        if not self.use_projection and self.hidden_sizes:
            self.projection_dim = self.hidden_sizes[-1]

        self.stage_names = ["stem", *(f"stage{stage}" for stage in range(1, len(self.hidden_sizes) + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)
        # here too, since an error of the validators that run afterwards is no ValueError
        self.validate_architecture()

    @classmethod
    def small(cls, **kwargs: Any) -> "SViTConfig":
        """Return the published SViT-S (25.5 M parameters, 83.6 % ImageNet-1k top-1 at 224 pixels)."""
        return cls(**kwargs)

    @classmethod
    def base(cls, **kwargs: Any) -> "SViTConfig":
        """Return the published SViT-B (51.7 M parameters, 84.8 % ImageNet-1k top-1 at 224 pixels)."""
        layout: dict[str, Any] = {
            "hidden_sizes": [96, 192, 384, 512],
            "depths": [4, 6, 14, 6],
            "num_attention_heads": [2, 3, 6, 8],
            "use_layer_scale": [False, False, True, True],
        }
        return cls(**(layout | kwargs))

    @classmethod
    def large(cls, **kwargs: Any) -> "SViTConfig":
        """Return the published SViT-L (95.0 M parameters, 85.3 % ImageNet-1k top-1 at 224 pixels)."""
        layout: dict[str, Any] = {
            "hidden_sizes": [96, 192, 448, 640],
            "depths": [4, 7, 19, 8],
            "num_attention_heads": [2, 3, 7, 10],
            "use_layer_scale": [False, False, True, True],
        }
        return cls(**(layout | kwargs))

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.hidden_sizes)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages, each of which gives one hidden state after the stem's (Transformers' generic name)."""
        return len(self.hidden_sizes)

    @property
    def hidden_size(self) -> int:
        """Width of `pooler_output`, `projection_dim`, by which generic heads join it to other models.

        The last feature map has `hidden_sizes[-1]` channels.
        """
        return self.projection_dim

    @property
    def cell_sizes(self) -> list[tuple[int, int]]:
        """`super_token_sizes` as `(height, width)` pairs, in tokens; 1 where attention is global."""
        pairs = [(cell, cell) if isinstance(cell, int) else (cell[0], cell[1]) for cell in self.super_token_sizes]
        if self.attention_kinds == "super_tokens":
            return pairs
        kinds = self.stage_attention_kinds
        return [(1, 1) if kind == "global" else pair for kind, pair in zip(kinds, pairs, strict=True)]

    @property
    def stage_attention_kinds(self) -> list[str]:
        """`attention_kinds` of each stage."""
        kinds = self.attention_kinds
        return [kinds] * self.num_stages if isinstance(kinds, str) else list(kinds)

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON file; a config that was loaded beside its code is written with the code beside it."""
        super().to_json_file(json_file_path, use_diff)
        if getattr(self, "auto_map", None):
            write_code(json_file_path, self.code_auto_map)

    def validate_architecture(self) -> None:
        """Refuse values, and combinations of values, that make no model; called at creation and by every model."""
        self._check_stages()
        self._check_parts()
        self._check_super_tokens()
        self._check_ranges()

    def _check_stages(self) -> None:
        if not self.hidden_sizes:
            raise ValueError("`hidden_sizes` is empty; give the channels of at least one stage.")
        for name in _PER_STAGE_FIELDS:
            values = getattr(self, name)
            if len(values) != len(self.hidden_sizes):
                raise ValueError(
                    f"`{name}` has {len(values)} entries, {values}; it needs {len(self.hidden_sizes)}, one per stage "
                    f"of `hidden_sizes`={self.hidden_sizes}."
                )
        for name in ("hidden_sizes", "depths", "num_attention_heads"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; every entry has to be at least 1.")
        if self.hidden_sizes[0] % 2:
            raise ValueError(
                f"`hidden_sizes` starts with {self.hidden_sizes[0]}; the first entry has to be even, since the stem "
                "starts at half of it."
            )
        for stage, (channels, heads) in enumerate(zip(self.hidden_sizes, self.num_attention_heads, strict=True), 1):
            if channels % heads:
                raise ValueError(
                    f"`num_attention_heads` has {heads} for stage {stage}, which does not divide its {channels} "
                    f"channels (`hidden_sizes`={self.hidden_sizes})."
                )

    def _check_parts(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; allowed are {list(allowed)}.")
        kinds = self.stage_attention_kinds
        if len(kinds) != self.num_stages or not set(kinds) <= set(_ATTENTION_KINDS):
            raise ValueError(
                f"`attention_kinds` is {self.attention_kinds!r}; allowed is one of {list(_ATTENTION_KINDS)}, or a "
                f"list with one of them for each of the {self.num_stages} stages."
            )

    def _check_super_tokens(self) -> None:
        for stage, cell in enumerate(self.super_token_sizes, 1):
            pair = (cell, cell) if isinstance(cell, int) else cell
            if len(pair) != 2 or min(pair) < 1:
                raise ValueError(
                    f"`super_token_sizes` has {cell} for stage {stage}; allowed is one int or a (height, width) pair, "
                    "at least 1 token each."
                )
        for stage, (kind, cell) in enumerate(zip(self.stage_attention_kinds, self.cell_sizes, strict=True), 1):
            if kind in ("window", "pooled_keys") and cell == (1, 1):
                raise ValueError(
                    f"`attention_kinds` has {kind!r} for stage {stage}, which needs a cell larger than 1; "
                    f"`super_token_sizes` is {self.super_token_sizes}."
                )
        for stage, (cell, rounds) in enumerate(zip(self.cell_sizes, self.num_sampling_iterations, strict=True), 1):
            if cell != (1, 1) and rounds < 1:
                raise ValueError(
                    f"`num_sampling_iterations` has {rounds} for stage {stage}, whose cell is {cell}; it has to be at "
                    "least 1 where the cell is larger than 1."
                )
        if self.super_token_sampler not in SUPER_TOKEN_SAMPLERS:
            raise ValueError(
                f"`super_token_sampler` is {self.super_token_sampler!r}; allowed are {sorted(SUPER_TOKEN_SAMPLERS)}, "
                "and what `register_super_token_sampler` was given before."
            )

    def _check_ranges(self) -> None:
        for names, is_allowed, allowed in _RANGES:
            for name in names:
                if not is_allowed(getattr(self, name)):
                    raise ValueError(f"`{name}` is {getattr(self, name)}; it has to be {allowed}.")
        if int(min(self.hidden_sizes) * self.mlp_ratio) < 1:
            raise ValueError(
                f"`mlp_ratio` is {self.mlp_ratio}; it leaves no hidden channel for `hidden_sizes`={self.hidden_sizes}."
            )
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"`image_size` is {self.image_size}; allowed is one int, or a (height, width) pair, of pixels."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}; allowed are {sorted(ACT2FN)}.")

    def _warn_of_misspelled_fields(self, kwargs: dict[str, Any]) -> None:
        # a slip of the pen would silently build the default model; foreign keys in a config.json are legitimate
        names = {field.name for field in fields(self)} - {field.name for field in fields(PreTrainedConfig)}
        names |= {"out_features", "out_indices", "num_labels"}
        for key in kwargs.keys() - names:
            close = [] if key.startswith("_") else difflib.get_close_matches(key, names, n=1, cutoff=0.85)
            if close:
                logger.warning_once(
                    f"`{key}`={kwargs[key]!r} is no field of {type(self).__name__}; did you mean `{close[0]}`?"
                )


__all__ = ["SViTConfig"]
