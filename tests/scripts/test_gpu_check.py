# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification


SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
# neither is on the machine that the check is for
ABSENT = "accelerate,datasets,evaluate,sklearn,torchao,torchvision,tyro"


@pytest.mark.slow
@pytest.mark.process
def test_check_runs_on_a_machine_with_torch_and_transformers_alone(tmp_path):
    SViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "tiny")
    small = ["--batch-size", "2", "--image-size", "64", "--models", tmp_path / "tiny", "--peers", "--no-compile"]
    result = subprocess.run(
        ["bash", SCRIPT, tmp_path / "out", "200", "--device", "cpu", *map(str, small)],
        env=os.environ | {"SVIT_TEST_HIDDEN_PACKAGES": ABSENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"env.txt", "tests.txt", "times.txt", "times.json", "profile.txt"} <= written
    assert "FAILED" not in (tmp_path / "out" / "times.txt").read_text()
    cases = json.loads((tmp_path / "out" / "times.json").read_text())["cases"]
    assert [case["task"] for case in cases] == ["inference", "training"]
    own = [f"tiny {name}" for name in ("official operators", "eager", "official operators, graph", "eager, graph")]
    assert [row["name"] for row in cases[1]["rows"]] == own


def test_single_kernels_are_called_as_they_want_it():
    pytest.importorskip("triton")
    from scripts.benchmark.gpu_check import kernel_works
    from scripts.benchmark.networks import Network

    # not more than the interpreter manages in a second
    config = tiny_config(hidden_sizes=[8, 16, 16, 16], super_token_sizes=[2, 1, 1, 1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = []
    for name, work, num_bytes, _ in kernel_works(Network("tiny", None, config), 1, 32, device, torch.float32):
        work()
        names.append(name)
        assert num_bytes > 0
    assert len(names) == 7 + 3 + 7 + 7 + 7
