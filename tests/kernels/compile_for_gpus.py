# SPDX-License-Identifier: Apache-2.0
"""Compile what the operators launch, for a GPU that need not be there, and print what each kernel takes of it.

    python compile_for_gpus.py CAPABILITY DTYPE [some]

One line of JSON per kernel and shape; `some` leaves out a grid that takes as much of a GPU as another, or less. The
interpreter, which the other tests use, accepts types, operations and amounts of shared memory that no GPU has.
What interprets cannot compile: this is a process of its own.
Kernels of the feed-forward are bound by instructions more than by bytes: those for an element of the wide map are
counted in the machine code, in the loop over it or, after a product, outside of the loop.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from svit_hf.kernels.triton import depthwise, feed_forward, normalized_sampling, sampling, upsampling


# by compute capability: channels, height and width, cell
GRIDS = {90: [(192, 28, 4), (320, 14, 2), (96, 56, 8)], 80: [(64, 56, 8)]}
# likewise of the map in the feed-forward, which strips of the largest size divide
MAPS = {90: (384, 56), 80: (256, 28)}
# of the tokens before it, for which a program makes as many channels of one operand as it can
TOKENS = {90: [(64, 96, 56), (64, 320, 14)], 80: [(64, 128, 28)]}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def launches(run, *shape):
    """Return the launches of forward and backward as `(kernel, arguments, options)`, without doing them."""
    recorded = []
    for module in (depthwise, feed_forward, normalized_sampling, sampling, upsampling):
        module.launch = lambda kernel, grid, *arguments, **options: recorded.append((kernel, arguments, options))
    run(*shape)
    return recorded


def attend(dtype, channels, length, cell):
    tokens = torch.empty(1, channels, length, length, dtype=dtype)
    super_tokens, association, mass = sampling.sample_super_tokens(tokens, (cell, cell), 1, "soft")
    upsampling.upsample_tokens(super_tokens, association, (cell, cell), (length, length))
    upsampling.upsample_tokens(super_tokens, association, (cell, cell), (length, length), mass)
    upsampling.aggregate_tokens(tokens, association, (cell, cell))
    record_normalized(tokens, cell, dtype)
    if dtype == torch.bfloat16:
        # what LayerNorm gives under autocast
        record_normalized(tokens, cell, torch.float32)


def convolve(dtype, channels, length):
    hidden_states = torch.empty(1, channels, length, length, dtype=dtype)
    weight, bias = torch.empty(channels, 1, 3, 3), torch.empty(channels)
    depthwise.depthwise_residual(hidden_states, weight, bias, "gelu", True)
    depthwise.depthwise_residual_backward(hidden_states, hidden_states, weight, "gelu", True)


def mix(dtype, batch_size, channels, length):
    tokens = torch.empty(batch_size, channels, length, length, dtype=dtype)
    wide = torch.empty(4 * channels, channels, 1, 1)
    taps, bias, scale = torch.empty(4 * channels, 1, 3, 3), torch.empty(4 * channels), torch.empty(channels)
    factors = torch.empty(batch_size)
    narrow = wide.view(channels, 4 * channels, 1, 1)
    feed_forward.feed_forward(
        tokens, wide, bias, taps, bias, True, narrow, scale, scale, factors, tokens, torch.float32, True
    )


def record_normalized(tokens, cell, dtype):
    """Sample with LayerNorm, forward and backward, where one tile holds all channels."""
    if tokens.shape[1] > sampling.MAX_CHANNELS:
        return
    weight = torch.empty(tokens.shape[1], dtype=dtype)
    super_tokens, association, mass, mean, rstd = normalized_sampling.normalize_and_sample(
        tokens, weight, weight, 1e-6, (cell, cell), 1, "soft", dtype
    )
    normalized_sampling.differentiate_normalize_and_sample(
        super_tokens, tokens, weight, mean, rstd, association, mass, (cell, cell)
    )


def compile_launch(kernel, arguments, options, capability):
    """Compile as Triton's launcher would, and return registers, bytes of stack and shared memory, and instructions."""
    names = kernel.arg_names
    compiler_options = {name: value for name, value in options.items() if name not in names}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = options[name] if name in options else arguments[index]
        if name in options or (isinstance(value, int) and value == 1):
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
        usage = subprocess.run([tool, "-res-usage", "-sass", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    usage = {"registers": int(registers), "stack": int(stack), "shared": compiled.metadata.shared} | {
        "instructions": instructions_per_element(kernel.__name__, usage, options)
    }
    return usage


def instructions_per_element(name, code, options):
    """Count the machine instructions of a warp for an element of the wide map, or return None for other kernels."""
    addresses = [int(address, 16) for address in re.findall(r"/\*([0-9a-f]{4,6})\*/ ", code)]
    branches = re.findall(r"/\*([0-9a-f]{4,6})\*/ [^;/]*BRA[^;/]* 0x([0-9a-f]+)", code)
    loops = [(int(to, 16), int(address, 16)) for address, to in branches if int(to, 16) < int(address, 16)]
    lengths = [sum(first <= address <= last for address in addresses) for first, last in loops]
    if name == "widen_kernel":
        count, elements = len(addresses) - sum(lengths), options["BLOCK_T"] * options["BLOCK_F"]
    elif name == "narrow_kernel":
        count, elements = max(lengths), 8 * options["COLUMNS"] * options["BLOCK_F"]
    elif name in ("depthwise_kernel", "depthwise_backward_kernel"):
        # of the backward kernel, the loop over columns is within that over strips
        count, columns = min(lengths), 3 if name == "depthwise_kernel" else 1
        elements = columns * options["ROWS"] * options["BLOCK_C"]
    else:
        return None
    return count * 32 * options["num_warps"] / elements


def main():
    capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
    # there is no GPU to ask
    feed_forward.MAX_BLOCKS[9] = feed_forward.MAX_BLOCKS[capability // 10]
    is_all = sys.argv[3:] != ["some"]
    runs = [(attend, dtype, *grid) for grid in GRIDS[capability][: None if is_all else 2]]
    runs.append((convolve, dtype, *MAPS[capability]))
    runs += [(mix, dtype, *tokens) for tokens in TOKENS[capability]]
    for run, *shape in runs:
        for kernel, arguments, options in launches(run, *shape):
            what = {"kernel": kernel.__name__, "shape": shape[1:]}
            usage = compile_launch(kernel, arguments, options, capability)
            print(json.dumps(what | usage), flush=True)  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main()
