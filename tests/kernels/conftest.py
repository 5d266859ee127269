# SPDX-License-Identifier: Apache-2.0
"""What the tests of kernels share: a device, memory that is poisoned before use, and an interpreter that is right."""

import pytest
import torch
from torch.utils._device import _device_constructors

from svit_hf.kernels import resolve


@pytest.fixture(scope="session", autouse=True)
def bfloat16_in_the_interpreter():
    """Let the interpreter multiply bfloat16 as the numbers that they are; triton 3.7 multiplies their bits."""
    if torch.accelerator.is_available():
        yield
        return
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("triton")
    from triton import language
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def widen(handle):
        if handle.dtype.scalar != language.bfloat16:
            return handle
        bits = handle.data.astype(numpy.uint32) << 16
        return interpreter.TensorHandle(bits.view(numpy.float32), language.float32)

    def create_dot_of_numbers(self, a, b, *arguments):
        return create_dot(self, widen(a), widen(b), *arguments)

    builder.create_dot = create_dot_of_numbers
    yield
    builder.create_dot = create_dot


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernels(device, implementation):
    """Return the operators of an implementation."""
    resolve(implementation, device, torch.float32)
    return getattr(torch.ops, f"svit_hf_{implementation}")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what `torch.empty` returns with NaN, so that a value that was never written is noticed."""
    # `with torch.device(...)` notes the functions that make tensors once and for ever: the real ones, not these
    _device_constructors()
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)

        def poisoned(*arguments, allocate=allocate, **options):
            tensor = allocate(*arguments, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)
