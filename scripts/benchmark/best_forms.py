# SPDX-License-Identifier: Apache-2.0
"""The forms in which SViT and its peers are fastest on a CPU, in both dtypes: what decides which network to pick."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from svit_hf.benchmark.forms import EAGER, FORMS, Form
from svit_hf.export.check import Predict
from svit_hf.export.exporting import exporters_to_stderr
from svit_hf.export.loading import import_openvino, run_in_openvino
from svit_hf.inference.folding import fold_weights


class OpenVinoClassifier(nn.Module):
    """Classifier in OpenVINO, made in its first call: in the precision of those images, for images of their shape."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.predict: Predict | None = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # the weights stay in float32: OpenVINO rounds what it wants to
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, num_labels)`."""
        inputs = pixels.float().contiguous()
        if self.predict is None:
            with torch.inference_mode(False), torch.no_grad(), exporters_to_stderr():
                exported = torch.export.export(self.model, (inputs.clone(),))
                program = import_openvino().convert_model(exported)
            self.predict = run_in_openvino(program, {torch.float32: "f32", torch.bfloat16: "bf16"}[pixels.dtype])
        return self.predict(inputs)


OPENVINO = Form("openvino", OpenVinoClassifier, memory_format=torch.contiguous_format)
BEST_FORMS = (
    EAGER,
    FORMS["folded"],
    FORMS["folded-cpp"],
    replace(OPENVINO, prepare=lambda model: OpenVinoClassifier(fold_weights(model))),
    FORMS["onnx"],
    FORMS["folded-frozen"],
)
BEST_PEER_FORMS = (
    Form("eager", lambda model: model),
    OPENVINO,
    Form("frozen", lambda model: model, compiles=True, freezes=True),
)
