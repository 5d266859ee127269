# SPDX-License-Identifier: Apache-2.0
"""The commands of the guide are ones that the script takes; its Python runs in tests/contracts/test_documents.py."""

import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from svit_hf.tasks import TASKS
from svit_hf.tasks.heads import HEADS
from svit_hf.tasks.models import check_image_size


ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "segment_and_detect.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "scripts" / "train_dense_with_trainer.py"
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


def test_guide_names_every_task_and_head():
    assert len(COMMANDS) >= 3
    assert [name for name in [*TASKS, *HEADS] if f"`{name}`" not in GUIDE] == []
