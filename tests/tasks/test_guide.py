# SPDX-License-Identifier: Apache-2.0
"""The commands of the guide are ones that the script takes; its Python runs in tests/contracts/test_documents.py."""

import re
import shlex
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import tyro

from svit_hf import cli
from svit_hf.tasks import TASKS
from svit_hf.tasks.heads import HEADS
from svit_hf.tasks.models import check_image_size


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "segment_and_detect.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "scripts" / "train_dense_with_trainer.py"
# of what is saved; those of `svit-hf train` run in tests/training/
OWN_COMMANDS = re.findall(r"^svit-hf ((?:evaluate|predict|visualize|export|push) .*)$", GUIDE, re.MULTILINE)
COMMANDS = re.findall(r"^python scripts/train_dense_with_trainer.py (.*)$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_script_takes_the_command(command, script):
    options = script.parse(shlex.split(command))
    task = script.make_task(options, options.labels or ["one", "two"])
    assert task.name == options.task
    assert check_image_size(options.image_size[0]) == task.size


@pytest.mark.parametrize("command", OWN_COMMANDS)
def test_program_takes_the_command(command):
    name, *arguments = shlex.split(command)
    entry = cli.COMMANDS[name]
    made = tyro.cli(getattr(import_module(entry.module), entry.dataclass), args=arguments)
    assert arguments[0] in (getattr(made, "model", None), str(getattr(made, "folder", None)))


def test_guide_names_every_task_and_head():
    assert len(COMMANDS) >= 3
    assert len(OWN_COMMANDS) >= 5
    assert [name for name in [*TASKS, *HEADS] if f"`{name}`" not in GUIDE] == []
