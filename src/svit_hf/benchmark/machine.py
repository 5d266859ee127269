# SPDX-License-Identifier: Apache-2.0
"""What a measurement ran on: device, versions, commit, and the speeds that bound everything."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn import functional as F

import svit_hf
from svit_hf.benchmark.measuring import MIN_SECONDS, Stopwatch, Work
from svit_hf.memory_allocator import keep_freed_memory


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKAGES = ("svit-hf", "torch", "transformers", "triton", "timm", "torchvision", "pillow")

# a dtype that multiplies at less than this share of fp32's speed is emulated: models would take minutes per batch
EMULATED_SHARE = 0.25


@dataclass(frozen=True)
class Peaks:
    """Hold the highest speeds that were measured in the same run.

    Attributes:
        matrix_product: Operations per second of a large matrix product, by dtype; a multiply-accumulate is two.
        convolution: The same of a 1x1 convolution of many channels, in channels_last memory.
        copy: Bytes per second, read and written together, of copying a large tensor.
    """

    matrix_product: dict[str, float]
    convolution: dict[str, float]
    copy: float

    def operations(self, dtype: str) -> float:
        """Return the higher of the two in operations per second."""
        return max(self.matrix_product[dtype], self.convolution[dtype])


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return what somebody needs to know to get the same numbers; all of it goes into JSON."""
    description: dict[str, object] = {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "processor": _processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory_allocator": keep_freed_memory(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _installed_version(name))},
        "commit": _commit(),
    }
    if device.type == "cuda":
        description["cuda"] = torch.version.cuda
        description["cudnn"] = torch.backends.cudnn.version()
    return description


def use_exact_float32() -> None:
    """Let float32 mean float32 for every contestant: no TensorFloat-32 in products and convolutions."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    # all sizes are fixed, so that searching for the fastest convolution pays
    torch.backends.cudnn.benchmark = True


def measure_peaks(dtypes: list[str], device: torch.device, stopwatch: Stopwatch) -> Peaks:
    """Measure what bounds the contestants: products, 1x1 convolutions, copies.

    Args:
        dtypes: Names in `DTYPES`; fp32 is measured in any case, for comparison.
        device: Where.
        stopwatch: Gives the seconds of a number of calls.

    Returns:
        The peaks. An emulated dtype is measured at a small size only.
    """
    matrix_product: dict[str, float] = {}
    convolution: dict[str, float] = {}
    for name in ["fp32", *(dtype for dtype in dtypes if dtype != "fp32")]:
        matrix_product[name] = _measure_product(name, 256, device, stopwatch)
        if is_emulated(name, matrix_product):
            convolution[name] = matrix_product[name]
            continue
        matrix_product[name] = _measure_product(name, 8192 if device.type == "cuda" else 2048, device, stopwatch)
        convolution[name] = _measure_convolution(name, device, stopwatch)
    return Peaks(matrix_product, convolution, _measure_copy(device, stopwatch))


def is_emulated(dtype: str, matrix_product: dict[str, float]) -> bool:
    """Tell whether a device has no arithmetic of its own for a dtype, by what its products reach."""
    return matrix_product[dtype] < EMULATED_SHARE * matrix_product["fp32"]


def _measure_product(dtype: str, size: int, device: torch.device, stopwatch: Stopwatch) -> float:
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, stopwatch)


def _measure_convolution(dtype: str, device: torch.device, stopwatch: Stopwatch) -> float:
    batch, channels, out_channels, edge = (64, 512, 2048, 56) if device.type == "cuda" else (8, 256, 1024, 28)
    images = torch.randn(batch, channels, edge, edge, device=device).to(DTYPES[dtype])
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, channels, 1, 1, device=device).to(DTYPES[dtype])
    seconds = _best_seconds(lambda: F.conv2d(images, weight), stopwatch)
    return 2 * batch * edge**2 * channels * out_channels / seconds


def _measure_copy(device: torch.device, stopwatch: Stopwatch) -> float:
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), stopwatch)


def _best_seconds(work: Work, stopwatch: Stopwatch) -> float:
    """Return the seconds per call of the fastest of five repeats, after a warm-up: a peak is what can be reached."""
    with torch.inference_mode():
        stopwatch(work, 1)
        calls = min(max(int(MIN_SECONDS / max(stopwatch(work, 1), 1e-9)), 1), 1000)
        return min(stopwatch(work, calls) / calls for _ in range(5))


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that this code is part of, with `-dirty` if files were changed since."""
    folder = Path(svit_hf.__file__).parent
    try:
        # a package installed inside somebody's repository is not part of that
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout
