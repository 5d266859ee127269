# SPDX-License-Identifier: Apache-2.0
"""Export: a trained classifier as a program that runs without its code: ONNX, OpenVINO, or PyTorch's format."""

from svit_hf.export.exporting import ExportFolder, ExportOptions, export_classifier


__all__ = ["ExportFolder", "ExportOptions", "export_classifier"]
