# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

from svit_hf import SViTForImageClassification


SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
# neither is on the machine that the check is for
ABSENT = "accelerate,datasets,evaluate,sklearn,torchao,torchvision,tyro"


@pytest.mark.slow
@pytest.mark.process
def test_check_runs_on_a_machine_with_torch_and_transformers_alone(tmp_path):
    SViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "tiny")
    small = ["--batch-size", "2", "--image-size", "64", "--models", tmp_path / "tiny", "--peers", "--quick"]
    result = subprocess.run(
        ["bash", SCRIPT, tmp_path / "out", "200", "--device", "cpu", *map(str, small)],
        env=os.environ | {"SVIT_TEST_HIDDEN_PACKAGES": ABSENT, "TRITON_INTERPRET": "0", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"env.txt", "tests.txt", "times.txt", "times.json", "profile.txt"} <= written
    assert "FAILED" not in (tmp_path / "out" / "times.txt").read_text()
    cases = json.loads((tmp_path / "out" / "times.json").read_text())["cases"]
    models = [case for case in cases if case["part"] == "model"]
    assert [case["task"] for case in models] == ["inference", "training"]
    assert {case["part"] for case in cases} == {"model", "operators", "super-tokens"}
    own = [f"tiny {name}" for name in ("official operators", "eager", "official operators, graph", "eager, graph")]
    assert [row["name"] for row in models[1]["rows"]] == own
