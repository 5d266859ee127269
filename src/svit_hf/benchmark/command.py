# SPDX-License-Identifier: Apache-2.0
"""`svit-hf benchmark`: the arguments, and what is shown and written at the end."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from svit_hf.errors import SViTError
from svit_hf.extras import require_extra


SUFFIXES = (".json", ".md", ".png")


@dataclass
class BenchmarkCommand:
    """Measure SViT beside the official operators and its peers, in one run on this machine.

    Contestants take turns, round after round, so that what the machine does meanwhile meets all of them; shown are
    medians with their quartiles. Everybody has settled memory, the same images and, where the network is the same, the
    same weights. Results are checked first: if one is wrong, no time is shown, and the exit status is not 0.

    Args:
        part: What to measure: whole models, sampling and upsampling of super tokens alone, single operators, how cost
            grows with the image, or how fast images are decoded and augmented.
        task: Forward in inference mode, or a training step: forward, backward, AdamW.
        model: A published layout, small, base or large, or a folder that save_pretrained wrote.
        image_size: Edges of the images in pixels, one case each; 224 to 1024 for growth unless given, 224 otherwise.
        batch_size: Images per call, one case each; for growth, at the smallest size.
        dtype: Weights and arithmetic in inference; by autocast in training. One that the device only emulates is left
            out.
        baseline: A Python file with the official operators, to compare with.
        peers: Peers of Transformers, or of timm where it is installed; none if no name follows.
        compile: Add forms that torch.compile makes. Takes a minute per form on a small CPU.
        export: Add exported programs on a CPU: onnx in ONNX Runtime, pt2 in PyTorch. Exporting SViT-S takes minutes.
        int8: Add forms in 8 bits on a CPU: of every format in export, and in memory where torchao is installed.
        data: For the part data: a Hub data set, parquet files, webdataset tars or a folder of images, as for training;
            two photographs, over and over, unless given.
        num_images: For the part data: images to read, and to go through in each round.
        num_workers: For the part data: processes that decode and augment, one case each; 0 for none but this one.
        repeats: Rounds.
        device: cpu, cuda, cuda:1, ...; the fastest there is unless given.
        output: Files to write: .json for everything that was measured, .md for tables, .png for a chart.
        render: Read these .json files instead of measuring.
    """

    part: Literal["model", "super-tokens", "operators", "growth", "data"] = "model"
    task: Literal["inference", "training"] = "inference"
    model: str = "small"
    image_size: tuple[int, ...] = ()
    batch_size: tuple[int, ...] = (8,)
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16")
    baseline: Path | None = None
    peers: tuple[str, ...] = ("swin-t", "convnext-t", "pvt-v2-b2", "dinov3-convnext-t", "hiera-t")
    compile: bool = False
    export: tuple[Literal["onnx", "pt2"], ...] = ()
    int8: bool = False
    data: str = ""
    num_images: int = 256
    num_workers: tuple[int, ...] = (0,)
    repeats: int = 6
    device: str | None = None
    output: tuple[Path, ...] = ()
    render: tuple[Path, ...] = ()

    def run(self) -> int:
        """Measure or read, print the tables, write the files, and return the exit status.

        Raises:
            SViTError: If an argument is impossible, or the results of a contestant are wrong.
        """
        self._check()
        # seconds pass while these are imported
        _say("loading PyTorch and Transformers")
        from svit_hf.benchmark.chart import draw_chart
        from svit_hf.benchmark.report import markdown_of, text_of
        from svit_hf.benchmark.results import Results, read_results, write_results
        from svit_hf.benchmark.runner import run_benchmark

        results = read_results(self.render) if self.render else run_benchmark(self, say=_say)
        print(text_of(results))  # noqa: T201 - a program's result
        writers: dict[str, Callable[[Results, Path], object]] = {
            ".json": write_results,
            ".md": lambda results, path: path.write_text(markdown_of(results), encoding="utf-8"),
            ".png": draw_chart,
        }
        for path in self.output:
            writers[path.suffix](results, path)
            _say(f"wrote {path}")
        return 0

    def _check(self) -> None:
        limits = {"image_size": 32, "batch_size": 1, "num_images": 1, "num_workers": 0, "repeats": 1}
        for name, smallest in limits.items():
            value = getattr(self, name)
            if any(entry < smallest for entry in (value if isinstance(value, tuple) else (value,))):
                raise SViTError(f"`{name}` is {value}; it has to be at least {smallest}.")
        for name in ("batch_size", "dtype", "num_workers"):
            if not getattr(self, name):
                raise SViTError(f"`{name}` is empty; give at least one.")
        self._check_programs()
        if self.part == "data":
            require_extra("train", "benchmark --part data")
        for path in self.output:
            if path.suffix not in SUFFIXES:
                raise SViTError(f"`output` has {str(path)!r}; its suffix has to be one of {', '.join(SUFFIXES)}.")
            if not path.absolute().parent.is_dir():
                raise SViTError(f"`output` has {str(path)!r}, whose folder does not exist; make it first.")
            if path.suffix == ".png":
                require_extra("benchmark", "benchmark --output CHART.png")

    def _check_programs(self) -> None:
        if (self.export or self.int8) and (self.part, self.task) != ("model", "inference"):
            raise SViTError(
                f"`part` is {self.part!r}, `task` is {self.task!r}; `export` and `int8` are for inference with whole "
                "models alone."
            )
        if "onnx" in self.export:
            require_extra("export", "benchmark --export onnx")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
