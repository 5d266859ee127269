# SPDX-License-Identifier: Apache-2.0
"""An exported program, loaded again: a function from images to logits."""

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from svit_hf.export.check import Predict
from svit_hf.extras import require_extra


def load_program(folder: Path) -> Predict:
    """Load an exported program from its folder, to run on a CPU with as many threads as PyTorch has.

    Returns:
        A function of images, `(B, num_channels, height, width)`, that returns logits, `(B, num_labels)`.
    """
    if (folder / "model.xml").is_file():
        return run_in_openvino(folder / "model.xml")
    from transformers.exporters import ExportedModel

    options: dict[str, Any] = {}
    if (folder / "model.onnx").is_file():
        require_extra("export", "export")
        options["session_options"] = _session_options()
    elif "torchao" in _packages_of(folder):
        require_extra("quantization", "export --format pt2 --quantize int8")
        # the operators and tensors in the program are torchao's, and unknown to PyTorch before
        import_module("torchao.quantization")
    with warnings.catch_warnings():
        # Transformers' own use of what PyTorch deprecates
        warnings.simplefilter("ignore", FutureWarning)
        exported = ExportedModel.from_pretrained(folder, device="cpu", **options)
    return lambda pixel_values: exported(pixel_values=pixel_values).logits


def import_openvino() -> Any:
    """Return OpenVINO, whose package reports its use over the network unless that was forbidden: without doing so."""
    require_extra("openvino", "export --format openvino")
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    reporter = sys.modules.get("openvino_telemetry")
    # Python's own mark for a module that cannot be imported; OpenVINO then has nothing to report with
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    finally:
        del sys.modules["openvino_telemetry"]
        if reporter is not None:
            sys.modules["openvino_telemetry"] = reporter


def run_in_openvino(program: Any, precision: str = "f32") -> Predict:
    """Compile a program for a CPU, and return a function from images to logits.

    Args:
        program: What `openvino.convert_model` returned, or the path of a `model.xml`.
        precision: Of the arithmetic, `"f32"` or `"bf16"`; weights and images are in float32.
    """
    # by default it takes all threads, and bfloat16 where the processor has it
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = import_openvino().compile_model(program, "CPU", settings)
    return lambda pixel_values: torch.from_numpy(compiled(pixel_values.numpy())[0])


def _session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # by default it has a thread for every core of the machine
    options.intra_op_num_threads = torch.get_num_threads()
    # an arena of its own keeps what a call needed, so that nobody could tell how much that was
    options.enable_cpu_mem_arena = False
    return options


def _packages_of(folder: Path) -> set[str]:
    """Return the packages that the exporter says had a part in a program."""
    manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return {name for component in manifest["components"].values() for name in component["metadata"]["packages"]}
