# SPDX-License-Identifier: Apache-2.0
"""The forms in which a network is run: as it is, with the official operators, folded, compiled, exported, ...

A form is one entry in `SVIT_FORMS` or `PEER_FORMS`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from svit_hf.benchmark.machine import DTYPES
from svit_hf.benchmark.official_operators import with_official_operators
from svit_hf.benchmark.programs import Programs
from svit_hf.export.exporting import ExportOptions, FormatName, QuantizeName
from svit_hf.inference import fold_for_inference, quantize_for_inference
from svit_hf.kernels import use_kernels
from svit_hf.model.modeling_svit import SViTForImageClassification, SViTLayer
from svit_hf.training.recomputation import selective_checkpointing


Task = Literal["inference", "training"]
# what takes part only if it is asked for: exported programs, and 8 bits in memory
Addition = Literal["onnx", "onnx int8", "pt2", "pt2 int8", "int8"]


@dataclass(frozen=True)
class Situation:
    """Hold what decides which forms take part, and how they are made.

    Attributes:
        task: What is measured.
        device: Where.
        does_compile: Whether compiled forms were asked for.
        baseline: The file with the official operators, imported; `None` leaves them out.
        additions: What else was asked for.
        programs: Where exported programs come from; needed with additions that are exported.
    """

    task: Task
    device: torch.device
    does_compile: bool = False
    baseline: ModuleType | None = None
    additions: frozenset[Addition] = frozenset()
    programs: Programs | None = None


def _unchanged(model: nn.Module, situation: Situation) -> nn.Module:
    return model


def _on(implementation: str) -> Callable[[nn.Module, Situation], nn.Module]:
    """Return what makes SViT run its super-token operations by one implementation, whatever `auto` would choose."""

    def prepare(model: nn.Module, situation: Situation) -> nn.Module:
        assert isinstance(model, SViTForImageClassification)
        use_kernels(model, None if implementation == "eager" else implementation)
        return model

    return prepare


def _folded_on(implementation: str) -> Callable[[nn.Module, Situation], nn.Module]:
    def prepare(model: nn.Module, situation: Situation) -> nn.Module:
        assert isinstance(model, SViTForImageClassification)
        return _on(implementation)(fold_for_inference(model), situation)

    return prepare


def _checkpointing(**kwargs: Any) -> Callable[[nn.Module, Situation], nn.Module]:
    def prepare(model: nn.Module, situation: Situation) -> nn.Module:
        assert isinstance(model, SViTForImageClassification)
        model.gradient_checkpointing_enable(kwargs)  # type: ignore[no-untyped-call]
        return _on("eager")(model, situation)

    return prepare


def _official(model: nn.Module, situation: Situation) -> nn.Module:
    assert situation.baseline is not None
    return with_official_operators(model, situation.baseline)


def _quantized(model: nn.Module, situation: Situation) -> nn.Module:
    assert isinstance(model, SViTForImageClassification)
    return _on("eager")(quantize_for_inference(model), situation)


def _exported(format: FormatName, quantize: QuantizeName = "none") -> Callable[[nn.Module, Situation], nn.Module]:
    def prepare(model: nn.Module, situation: Situation) -> nn.Module:
        assert isinstance(model, SViTForImageClassification)
        assert situation.programs is not None
        return situation.programs.load(model, ExportOptions(format, quantize))

    return prepare


@dataclass(frozen=True)
class Form:
    """Say how a network is run.

    Attributes:
        name: As in tables.
        prepare: Makes the form of a model of its own; it may change it or return another one.
        tasks: What the form can do.
        compiled: The whole network, the same with its weights as constants, or each of its layers on its own.
        is_official: Whether it needs the file with the official operators.
        needs_gpu: Whether it is left out on CPUs.
        autocasts: Whether inference in half precision keeps float32 weights and casts as it goes.
        memory_format: Of weights and images.
        shows_growth: Whether it takes part in the sweep over image sizes.
        addition: What has to be asked for; such forms infer in float32, on a CPU.
        is_int8: Whether it rounds to 8 bits, for which the correctness gate has a tolerance of its own.
    """

    name: str
    prepare: Callable[[nn.Module, Situation], nn.Module] = _unchanged
    tasks: tuple[Task, ...] = ("inference", "training")
    compiled: Literal["no", "whole", "frozen", "layers"] = "no"
    is_official: bool = False
    needs_gpu: bool = False
    autocasts: bool = False
    memory_format: torch.memory_format = torch.channels_last
    shows_growth: bool = False
    addition: Addition | None = None
    is_int8: bool = False

    def applies(self, dtype: str, situation: Situation) -> bool:
        """Tell whether the form takes part."""
        return (
            situation.task in self.tasks
            and (situation.does_compile or self.compiled == "no")
            and (situation.baseline is not None or not self.is_official)
            and (situation.device.type == "cuda" or not self.needs_gpu)
            # training casts as it goes in any case, and float32 never does
            and not (self.autocasts and dtype == "fp32")
            and (self.addition is None or (self.addition in situation.additions and dtype == "fp32"))
        )

    def make(
        self,
        model: nn.Module,
        dtype: str,
        situation: Situation,
        part: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> nn.Module:
        """Return a module to run, and leave `model` as it is; `part` takes out what is to be run on its own."""
        module = part(self.prepare(copy.deepcopy(model), situation)).to(situation.device)
        if situation.task == "inference" and not self.autocasts:
            module = module.to(DTYPES[dtype])
        # torch's stub knows only the overload without a memory format
        module = module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.compiled == "whole":
            module.compile(dynamic=False)
        elif self.compiled == "frozen":
            module.compile(dynamic=False, options={"freezing": True})
        elif self.compiled == "layers":
            for layer in module.modules():
                if isinstance(layer, SViTLayer):
                    layer.compile(dynamic=False)
        return module


# what the correctness gate compares with
PEER_REFERENCE = Form("eager")
SVIT_REFERENCE = Form("eager", _on("eager"), shows_growth=True)

# the first that applies is what ratios refer to, the last that shows growth stands for larger cells there
SVIT_FORMS = (
    Form(
        "official operators",
        _official,
        is_official=True,
        memory_format=torch.contiguous_format,
        shows_growth=True,
    ),
    Form(
        "official operators, autocast",
        _official,
        tasks=("inference",),
        is_official=True,
        autocasts=True,
        memory_format=torch.contiguous_format,
    ),
    Form(
        "official operators, compiled",
        _official,
        compiled="whole",
        is_official=True,
        memory_format=torch.contiguous_format,
    ),
    SVIT_REFERENCE,
    Form("selective checkpointing", _checkpointing(**selective_checkpointing()), tasks=("training",)),
    Form("full checkpointing", _checkpointing(use_reentrant=False), tasks=("training",)),
    Form("triton", _on("triton"), needs_gpu=True),
    Form("compiled", _on("eager"), tasks=("training",), compiled="whole"),
    Form("layers compiled", _on("eager"), tasks=("training",), compiled="layers"),
    Form("triton, compiled", _on("triton"), tasks=("training",), compiled="whole", needs_gpu=True),
    Form("folded", _folded_on("eager"), tasks=("inference",), shows_growth=True),
    Form("folded, triton", _folded_on("triton"), tasks=("inference",), needs_gpu=True, shows_growth=True),
    Form("folded, compiled", _folded_on("eager"), tasks=("inference",), compiled="whole"),
    Form("folded, frozen", _folded_on("eager"), tasks=("inference",), compiled="frozen"),
    Form("folded, layers compiled", _folded_on("eager"), tasks=("inference",), compiled="layers"),
    Form("folded, triton, compiled", _folded_on("triton"), tasks=("inference",), compiled="whole", needs_gpu=True),
    Form("folded, int8", _quantized, tasks=("inference",), addition="int8", is_int8=True),
    # ONNX Runtime takes images in NCHW
    Form(
        "ONNX Runtime",
        _exported("onnx"),
        tasks=("inference",),
        memory_format=torch.contiguous_format,
        addition="onnx",
    ),
    Form(
        "ONNX Runtime, int8",
        _exported("onnx", "int8"),
        tasks=("inference",),
        memory_format=torch.contiguous_format,
        addition="onnx int8",
        is_int8=True,
    ),
    Form("torch.export", _exported("pt2"), tasks=("inference",), addition="pt2"),
    Form("torch.export, int8", _exported("pt2", "int8"), tasks=("inference",), addition="pt2 int8", is_int8=True),
)

PEER_FORMS = (PEER_REFERENCE, Form("compiled", compiled="whole"))

# of sampling and upsampling alone; nothing in them is folded
PATH_FORMS = (
    *(form for form in SVIT_FORMS if form.is_official and not form.autocasts),
    SVIT_REFERENCE,
    Form("compiled", _on("eager"), compiled="whole"),
    Form("triton", _on("triton"), needs_gpu=True),
)
