# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from svit_hf.benchmark import measuring
from svit_hf.benchmark.measuring import WallStopwatch, is_emulated, measure_interleaved, speed_ratio, spread_of
from svit_hf.benchmark.memory import bytes_of


class FakeMachine:
    """Machine on which work takes what the test says, by a clock of its own; `ran` is who ran."""

    def __init__(self):
        self.now = 0.0
        self.ran = []

    def work(self, name, *seconds):
        remaining = list(seconds)

        def run():
            self.ran.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run

    def stopwatch(self):
        return WallStopwatch(torch.device("cpu"), lambda: self.now)


def test_contestants_take_turns():
    machine = FakeMachine()
    works = {"a": machine.work("a", 1.0), "b": machine.work("b", 2.0)}
    timings = measure_interleaved(works, machine.stopwatch(), rounds=3)
    assert "".join(machine.ran) == "aaa" + "bbb" + "ab" * 3
    assert timings["a"] == (1.0, 1.0, 1.0)
    assert timings["b"] == (2.0, 2.0, 2.0)


def test_warm_up_does_not_count():
    machine = FakeMachine()
    # compilation, then allocation, then what a call really takes
    timings = measure_interleaved({"a": machine.work("a", 60.0, 5.0, 1.0)}, machine.stopwatch(), rounds=2)
    assert timings["a"] == (1.0, 1.0)


def test_short_work_is_called_several_times_and_time_is_per_call():
    machine = FakeMachine()
    timings = measure_interleaved({"a": machine.work("a", 0.25)}, machine.stopwatch(), rounds=1, min_seconds=1.0)
    assert timings["a"] == (0.25,)
    assert len(machine.ran) == 3 + 4


def test_ratio_pairs_what_was_measured_in_the_same_round():
    # the machine slows down from round to round; who is twice as fast stays so
    first, other = (2.0, 4.0, 16.0), (1.0, 2.0, 8.0)
    assert speed_ratio(first, other) == (2.0, 2.0, 2.0)
    assert speed_ratio(other, first).median == 0.5


def test_spread_is_median_and_quartiles():
    assert spread_of([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0)
    assert spread_of([7.0]) == (7.0, 7.0, 7.0)


def test_emulated_arithmetic_is_recognised_by_its_speed(monkeypatch):
    speeds = {"fp32": 2e9, "bf16": 1e8, "fp16": 1e9}
    monkeypatch.setattr(measuring, "product_speed", lambda dtype, *arguments: speeds[dtype])
    assert [dtype for dtype in speeds if is_emulated(dtype, torch.device("cpu"), None)] == ["bf16"]


def test_state_counts_every_storage_once():
    tensor = torch.zeros(10)
    assert bytes_of([tensor, tensor.view(2, 5), torch.zeros(3)]) == 52


WORK = """
import torch
from svit_hf.benchmark.memory import measure_working_memory

kept = torch.ones(16 * 2**20)

def work():
    # two at a time, three in all
    a = kept + 1
    b = a + 1
    del a
    return b + 1

print(measure_working_memory(work, torch.device("cpu")))
"""


def test_working_memory_is_the_peak_of_a_call(fresh_python):
    # of its own, because a process that keeps freed memory for later has another peak
    measured = fresh_python("-c", WORK).strip()
    if measured == "None":
        pytest.skip("this system does not tell the high-water mark of a process")
    size = 64 * 2**20
    assert 1.9 * size < int(measured) < 2.5 * size
