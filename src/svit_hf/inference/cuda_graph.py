# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: a model's operations recorded once, and started together from then on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from svit_hf.errors import SViTError


_WARM_UP_CALLS = 3


def capture(model: nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """Record what a model does with a batch on an NVIDIA GPU as a CUDA graph, for images of that shape alone.

    A graph spares the time that the processor takes to start each operation, which is the limit for small batches.
    The weights are read where they are: changes in place count, moved or replaced weights do not.

    Args:
        model: In evaluation mode, on the GPU of `example`; folded, with kernels, or as it is.
        example: Images, `(B, C, height, width)`, whose shape, dtype and memory layout every call has to have.

    Returns:
        A function of such images that returns the model's outputs. The next call overwrites their tensors.

    Raises:
        SViTError: If `example` is not on an NVIDIA GPU or `model` is training; by the function, if images do not fit.
    """
    if example.device.type != "cuda":
        raise SViTError(f"`example` is on {str(example.device)!r}; CUDA graphs need it, and `model`, on 'cuda'.")
    if model.training:
        raise SViTError("`model` is in training mode; call `model.eval()` before it is captured.")
    pixel_values = example.clone()
    # kernels are compiled and libraries loaded before, on a stream of its own, as PyTorch asks
    stream = torch.cuda.Stream(example.device)
    stream.wait_stream(torch.cuda.current_stream(example.device))
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(_WARM_UP_CALLS):
            model(pixel_values)
    torch.cuda.current_stream(example.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        outputs = model(pixel_values)
    return replayer(graph.replay, pixel_values, outputs)


def replayer(replay: Callable[[], object], pixel_values: torch.Tensor, outputs: Any) -> Callable[[torch.Tensor], Any]:
    """Return a function of images that copies them to `pixel_values`, replays, and returns `outputs`."""

    def call(images: torch.Tensor) -> Any:
        if (images.shape, images.dtype) != (pixel_values.shape, pixel_values.dtype):
            raise SViTError(
                f"the images are {images.dtype}, shape {tuple(images.shape)}; captured were {pixel_values.dtype}, "
                f"shape {tuple(pixel_values.shape)}. Capture each shape that is needed."
            )
        pixel_values.copy_(images)
        replay()
        return outputs

    return call
