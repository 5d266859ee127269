# SPDX-License-Identifier: Apache-2.0
"""The forms that a trained classifier can take where it only infers, and the lines of code that get each of them."""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svit_hf.benchmark.measuring import made_up_images
from svit_hf.errors import SViTError
from svit_hf.export.exporting import ExportOptions, FormatName, QuantizeName, export_classifier
from svit_hf.export.loading import load_program
from svit_hf.inference import compile_frozen, fold_for_inference, quantize_for_inference
from svit_hf.inference.compilation import compile_with_constants
from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTPreTrainedModel


# half of them give the ranges of activations where a program in 8 bits wants any
NUM_CALIBRATION_IMAGES = 16


class Program(nn.Module):
    """Exported program in the place of a classifier, run on a CPU.

    Attributes:
        num_bytes: Size of the program with its weights: what a runtime keeps of it, nobody tells.
    """

    def __init__(self, model: Any, format: FormatName, quantize: QuantizeName = "none"):
        super().__init__()
        size = model.config.image_size
        images = None
        if quantize == "int8":
            edge = size if isinstance(size, int) else size[0]
            images = made_up_images(NUM_CALIBRATION_IMAGES, edge, model.config.num_channels)
        folder = tempfile.mkdtemp(prefix="svit-hf-benchmark-")
        # not before this object is gone: runtimes map the files of weights
        weakref.finalize(self, shutil.rmtree, folder)
        path = Path(folder) / "program"
        self.num_bytes = export_classifier(model, path, ExportOptions(format, quantize), images=images).num_bytes
        self.predict = load_program(path)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, num_labels)`."""
        return self.predict(pixel_values)


@dataclass(frozen=True)
class Form:
    """Way to run a network.

    Attributes:
        name: As in tables and arguments.
        prepare: Makes the form of a float32 model on the CPU, which is its own; it may change it.
        code: What to do with a loaded `model` to get the form.
        compiles: Whether torch.compile gets the whole of it.
        freezes: Whether compiled code has the weights as constants.
        memory_format: Of weights and images.
        needs_cpu: Whether it has nothing of its own elsewhere.
        is_program: Whether it is a program of its own, which computes in float32 or 8 bits on a CPU.
        is_int8: Whether it rounds to 8 bits: an approximation, whose worth only real images tell.
    """

    name: str
    prepare: Callable[[Any], nn.Module]
    code: str = ""
    compiles: bool = False
    freezes: bool = False
    memory_format: torch.memory_format = torch.channels_last
    needs_cpu: bool = False
    is_program: bool = False
    is_int8: bool = False

    def build(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return a module to run in evaluation mode; `model`, in float32 on the CPU, is left as it is."""
        module = self.prepare(copy.deepcopy(model))
        # torch's stub knows only the overload without a memory format
        module = module.to(device, dtype).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.freezes:
            freeze = compile_frozen if isinstance(module, SViTPreTrainedModel) else compile_with_constants
            freeze(module)
        elif self.compiles:
            module.compile(dynamic=False)
        return module


def run_on(kernels: str) -> Callable[[Any], nn.Module]:
    """Return what makes SViT run its super-token operations on `kernels`: `"eager"`, `"auto"` or `"triton"`."""

    def prepare(model: Any) -> nn.Module:
        try:
            use_kernels(model, None if kernels == "eager" else kernels)
        except ValueError as error:
            raise SViTError(str(error)) from error
        return model

    return prepare


def folded_on(kernels: str) -> Callable[[Any], nn.Module]:
    """Return the same for the folded model."""
    return lambda model: run_on(kernels)(fold_for_inference(model))


_FOLD = "from svit_hf.inference import fold_for_inference\nmodel = fold_for_inference(model)"
_KERNELS = 'from svit_hf.kernels import use_kernels\nuse_kernels(model, "triton")'
_EXPORTED = """\
from transformers.exporters import ExportedModel
model = ExportedModel.from_pretrained("exported")"""
_OPENVINO = """\
import openvino
model = openvino.compile_model("exported/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})"""


def _program(format: FormatName, quantize: QuantizeName = "none") -> Form:
    """Return the form of an exported program; ONNX Runtime and OpenVINO take images in NCHW."""
    is_int8 = quantize == "int8"
    options = f"{format} --quantize int8 --calibration PICTURES" if is_int8 else format
    loading = _OPENVINO if format == "openvino" else _EXPORTED
    return Form(
        f"{format}-int8" if is_int8 else format,
        lambda model: Program(model, format, quantize),
        f"svit-hf export MODEL exported --format {options}      # once, in a shell\n\n{loading}",
        memory_format=torch.channels_last if format == "pt2" else torch.contiguous_format,
        is_program=True,
        is_int8=is_int8,
    )


EAGER = Form("eager", run_on("eager"), "# as it is")

FORMS = {
    form.name: form
    for form in (
        EAGER,
        Form("kernels", run_on("triton"), _KERNELS),
        Form("folded", folded_on("eager"), _FOLD),
        Form(
            "folded-cpp",
            lambda model: fold_for_inference(model, cpp=True),
            "from svit_hf.inference import fold_for_inference\nmodel = fold_for_inference(model, cpp=True)",
            needs_cpu=True,
        ),
        Form("folded-kernels", folded_on("triton"), f"{_FOLD}\n{_KERNELS}"),
        Form("folded-compiled", folded_on("eager"), f"{_FOLD}\nmodel.compile(dynamic=False)", compiles=True),
        Form(
            "folded-frozen",
            folded_on("eager"),
            f"{_FOLD}\nfrom svit_hf.inference import compile_frozen\ncompile_frozen(model)",
            compiles=True,
            freezes=True,
        ),
        _program("onnx"),
        _program("openvino"),
        _program("pt2"),
        Form(
            "int8",
            quantize_for_inference,
            "from svit_hf.inference import quantize_for_inference\nmodel = quantize_for_inference(model)",
            is_program=True,
            is_int8=True,
        ),
        _program("onnx", "int8"),
        _program("openvino", "int8"),
    )
}
# what takes no minutes to make
QUICK_FORMS = ("eager", "kernels", "folded", "folded-cpp", "folded-kernels")


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits, whether a model returns them or an object that has them."""
    logits: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    return logits
