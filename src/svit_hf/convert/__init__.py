# SPDX-License-Identifier: Apache-2.0
"""Conversion of the official SViT checkpoints into folders that Transformers loads."""

from svit_hf.convert.architecture import infer_config
from svit_hf.convert.official import (
    ConversionReport,
    build_model,
    compare_with_reference,
    convert_official_checkpoint,
    load_official_checkpoint,
)


__all__ = [
    "ConversionReport",
    "build_model",
    "compare_with_reference",
    "convert_official_checkpoint",
    "infer_config",
    "load_official_checkpoint",
]
