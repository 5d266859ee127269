# SPDX-License-Identifier: Apache-2.0
"""Compile what the operators launch, for GPUs that need not be there, and print what each kernel takes of one.

Usage: python compile_for_gpus.py [CAPABILITY...]      (90 and 80 by default)

One line of JSON per kernel, shape, dtype and GPU. The interpreter, which other tests use, lets wrong types, too much
shared memory and operations that a GPU does not have pass. A process that interprets cannot compile: this is one of its
own, without TRITON_INTERPRET.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from svit_hf.kernels.triton import sampling, upsampling


# channels, height and width, cell: what the published models have, and a cell in a wide third stage
GRIDS = [(64, 56, 8), (96, 56, 8), (192, 28, 4), (320, 14, 2)]
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def launches(channels, length, cell, dtype):
    """Return the launches of forward and backward as `(kernel, arguments, options)`, without doing them."""
    recorded = []
    for module in (sampling, upsampling):
        module.launch = lambda kernel, grid, *arguments, **options: recorded.append((kernel, arguments, options))
    tokens = torch.empty(1, channels, length, length, dtype=dtype)
    super_tokens, association, mass = sampling.sample_super_tokens(tokens, (cell, cell), 1, "soft")
    for given in (None, mass):
        upsampling.upsample_tokens(super_tokens, association, (cell, cell), (length, length), given)
        upsampling.aggregate_tokens(tokens, association, (cell, cell), given)
    return recorded


def compile_launch(kernel, arguments, options, capability):
    """Compile as Triton's launcher would, and return registers, stack bytes and shared memory bytes."""
    names = kernel.arg_names
    compiler_options = {name: value for name, value in options.items() if name not in names}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = options[name] if name in options else arguments[index]
        if name in options or value == 1 and isinstance(value, int):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiler_options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__path__[0], "backends/nvidia/bin/cuobjdump")
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": compiled.metadata.shared}


def main():
    assert os.environ.get("TRITON_INTERPRET") != "1"
    for capability in [int(argument) for argument in sys.argv[1:]] or [90, 80]:
        for channels, length, cell in GRIDS:
            for dtype in TYPES:
                for kernel, arguments, options in launches(channels, length, cell, dtype):
                    what = {"kernel": kernel.__name__, "capability": capability, "dtype": str(dtype)}
                    shape = {"channels": channels, "cell": cell}
                    print(
                        json.dumps(what | shape | compile_launch(kernel, arguments, options, capability)), flush=True
                    )


if __name__ == "__main__":
    main()
