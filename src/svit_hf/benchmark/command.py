# SPDX-License-Identifier: Apache-2.0
"""`svit-hf benchmark`: which form of a model is fastest on this machine, and how to get it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from svit_hf.errors import SViTError
from svit_hf.files import require_writable, write_text
from svit_hf.progress import say


FormName = Literal[
    "eager",
    "kernels",
    "folded",
    "folded-cpp",
    "folded-kernels",
    "folded-compiled",
    "folded-frozen",
    "onnx",
    "openvino",
    "pt2",
    "int8",
    "onnx-int8",
    "openvino-int8",
]


@dataclass
class BenchmarkCommand:
    """Find the fastest form of a model on this machine: as it is, folded, compiled, exported, with kernels, in 8 bits.

    All forms have the same weights and images and take turns. Shown are medians; a form whose logits differ from those
    of the model by more than its arithmetic explains is marked and never recommended.

    Args:
        model: A folder with config.json and weights, the folder of a training run, or the name of a model on the Hub.
        forms: What to measure besides the model as it is. folded-compiled, folded-frozen, onnx, openvino and pt2 take
            minutes to make; kernels need an NVIDIA GPU; operators in C++, programs and 8 bits are measured on a CPU.
        batch_size: Images per call, a table each.
        image_size: Height and width in pixels; by default the model's own.
        dtype: fp32, bf16, fp16; one that the device only emulates is left out.
        rounds: How often each form has its turn.
        device: cpu, cuda, cuda:1, ...; the fastest there is unless given.
        output: A .json file for everything that was measured.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    forms: tuple[FormName, ...] = ("kernels", "folded", "folded-cpp", "folded-kernels")
    batch_size: tuple[int, ...] = (1, 8)
    image_size: int | None = None
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16")
    rounds: int = 6
    device: str | None = None
    output: Path | None = None

    def run(self) -> int:
        """Measure, print tables and a recommendation, write the file, and return the exit status.

        Raises:
            SViTError: If the model cannot be loaded or an argument is impossible.
        """
        if self.image_size is not None and self.image_size < 32:
            raise SViTError(f"`image_size` is {self.image_size}; it has to be at least 32.")
        if self.output is not None:
            require_writable(self.output, "output")
        say("loading PyTorch and Transformers")
        # seconds pass while these are imported
        from svit_hf.benchmark.comparison import compare_forms, find_device
        from svit_hf.benchmark.report import recommendation_of, tables_of
        from svit_hf.evaluation.checkpoints import find_model, load_classifier
        from svit_hf.provenance import provenance

        device = find_device(self.device)
        result = compare_forms(
            load_classifier(find_model(self.model), "cpu"),
            forms=self.forms,
            batch_sizes=self.batch_size,
            image_size=self.image_size,
            dtypes=self.dtype,
            rounds=self.rounds,
            device=device,
        )
        print("\n\n".join([*tables_of(result), recommendation_of(result)]))  # noqa: T201 - a program's result
        if self.output is not None:
            write_text(self.output, json.dumps(provenance(device) | asdict(result), indent=1) + "\n")
        return 0
