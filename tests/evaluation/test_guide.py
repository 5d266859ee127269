# SPDX-License-Identifier: Apache-2.0
"""The commands of the guide, in the order in which it has them."""

import re
import shlex
from pathlib import Path

import pytest
from evaluation_data import make_classifier, picture
from PIL import Image

from svit_hf import cli


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "evaluate.md"
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.mark.slow
def test_commands_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_classifier("svit-small-224", names=["cat", "dog"])
    for number in range(4):
        file = Path("pictures", "val", ("cat", "dog")[number % 2], f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    Image.linear_gradient("L").convert("RGB").save("picture.jpg")
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        if command.startswith("printf"):
            Path("names.txt").write_text("cat\ndog\n")
            continue
        program, *arguments = shlex.split(command)
        if program == "torchrun":
            # what it starts; two processes are in test_processes.py
            arguments = arguments[arguments.index("svit_hf") + 1 :]
        assert cli.main([*arguments, "--data.num-workers", "0"]) == 0, command
    assert Path("result.json").is_file()
    assert Path("predictions", "part-00000.parquet").is_file()
