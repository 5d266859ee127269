# SPDX-License-Identifier: Apache-2.0
"""Super tokens inside other vision transformers of Transformers."""

from svit_hf.other_models.applying import AppliedSuperTokens, apply_super_tokens
from svit_hf.other_models.merging import MergedPatches, merge_into_super_tokens


__all__ = ["AppliedSuperTokens", "MergedPatches", "apply_super_tokens", "merge_into_super_tokens"]
