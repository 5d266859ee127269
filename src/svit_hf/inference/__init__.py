# SPDX-License-Identifier: Apache-2.0
"""What makes a trained model fast where it only infers: folded weights, compiled code, graphs, 8 bits."""

from svit_hf.inference.compilation import compile_frozen, compile_layers
from svit_hf.inference.cuda_graph import capture
from svit_hf.inference.folding import fold_for_inference
from svit_hf.inference.quantization import quantize_for_inference


__all__ = ["capture", "compile_frozen", "compile_layers", "fold_for_inference", "quantize_for_inference"]
