# SPDX-License-Identifier: Apache-2.0
"""The commands of the guide are ones that the program takes; its Python runs in tests/contracts/test_documents.py."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from svit_hf import cli
from svit_hf.tasks import TASKS
from svit_hf.tasks.heads import HEADS


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "segment_and_detect.md").read_text(encoding="utf-8")
# of what is saved; those of `svit-hf train` run in tests/training/
COMMANDS = re.findall(r"^svit-hf ((?:evaluate|predict|visualize|export|push) .*)$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_program_takes_the_command(command):
    name, *arguments = shlex.split(command)
    entry = cli.COMMANDS[name]
    made = tyro.cli(getattr(import_module(entry.module), entry.dataclass), args=arguments)
    assert arguments[0] in (getattr(made, "model", None), str(getattr(made, "folder", None)))


def test_guide_names_every_task_and_head():
    assert len(COMMANDS) >= 5
    assert [name for name in [*TASKS, *HEADS] if f"`{name}`" not in GUIDE] == []
