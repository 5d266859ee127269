# SPDX-License-Identifier: Apache-2.0
import platform

import pytest

from svit_hf import memory_allocator
from svit_hf.memory_allocator import keep_freed_memory


# by its path: importing the package would take seconds
COUNT_PAGE_FAULTS = f"""
import resource, runpy
print(runpy.run_path({memory_allocator.__file__!r})["keep_freed_memory"]())
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(128 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Keep the process of the tests as it is."""
    monkeypatch.setattr(memory_allocator.ctypes, "CDLL", lambda name: pytest.fail("the allocator was touched"))
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "SVIT_HF_TUNE_MALLOC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SVIT_HF_TUNE_MALLOC", "0"),
        ("MALLOC_TRIM_THRESHOLD_", "1000"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000"),
    ],
)
def test_environment_wins(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    state = keep_freed_memory()
    assert state.startswith("left alone")
    assert name in state


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() == "left alone, because this is not glibc"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_freed_memory_is_used_again(fresh_python):
    tuned, faults = fresh_python("-c", COUNT_PAGE_FAULTS).splitlines()
    left_alone, default_faults = fresh_python(
        "-c", COUNT_PAGE_FAULTS, environment={"SVIT_HF_TUNE_MALLOC": "0"}
    ).splitlines()
    assert tuned.startswith("tuned")
    assert left_alone.startswith("left alone")
    # ten blocks in the same place instead of ten times new pages
    assert int(faults) < int(default_faults) / 5
