# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a piece of work, by what the device itself knows.

On CUDA it is what PyTorch's allocator handed out. On a CPU under Linux it is the high-water mark of the resident
memory of the process: freed memory is given back to the system, the mark is reset, and one call sets it anew. That
counts scratch space of libraries, and holes that the allocator leaves, too. Elsewhere it is not measured.
"""

import ctypes
import gc
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from svit_hf.benchmark.measuring import Work


_PROCESS = Path("/proc/self")


def measure_working_memory(work: Work, device: torch.device) -> int | None:
    """Return the bytes that one call needs at its peak beyond what is there before it, or `None` if nobody counts.

    Called after the timing: the next call has to map its pages anew.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or not _has_resettable_mark():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    work()
    return _resident_bytes("VmHWM") - before


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes that tensors take, each storage once."""
    plain = [part for tensor in tensors for part in _plain_tensors_of(tensor)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in plain}.values())


def _plain_tensors_of(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield what a tensor made of others holds, such as 8-bit weights and their scales, or the tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors_of(getattr(tensor, name))


def _has_resettable_mark() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        # kernels without it, and containers that forbid it
        return False
    return True


def _resident_bytes(field: str) -> int:
    status = (_PROCESS / "status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, f"/proc/self/status without {field}"
    return int(found[1]) * 1024
