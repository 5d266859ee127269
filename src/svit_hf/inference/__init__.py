# SPDX-License-Identifier: Apache-2.0
"""What makes a trained model fast where it only infers: folded weights."""

from svit_hf.inference.folding import fold_for_inference


__all__ = ["fold_for_inference"]
