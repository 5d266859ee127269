# SPDX-License-Identifier: Apache-2.0
"""Super tokens inside other vision transformers of Transformers."""

from svit_hf.other_models.applying import AppliedSuperTokens, apply_super_tokens


__all__ = ["AppliedSuperTokens", "apply_super_tokens"]
