# SPDX-License-Identifier: Apache-2.0
"""What holds for every file: short enough to read, licensed, free of one machine's paths."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
MAX_LINES = 600
# models of Transformers are one file each, which their readers expect and the Hub loads
MAX_LINES_OF = {"src/svit_hf/model/modeling_svit.py": 800}
LICENCE_LINE = "# SPDX-License-Identifier: Apache-2.0"
# a folder that only one machine has; relative paths and addresses do not begin so
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|home|farm|Users|mnt|opt)/")

CODE = {
    path.relative_to(ROOT).as_posix(): path.read_text().splitlines()
    for folder in ("scripts", "src", "tests")
    for pattern in ("*.py", "*.sh")
    for path in (ROOT / folder).rglob(pattern)
}
TEXT = CODE | {
    path.relative_to(ROOT).as_posix(): path.read_text().splitlines()
    for pattern in (
        "*.md",
        "*.toml",
        "*.txt",
        "*.cff",
        "*.yaml",
        ".ci/*",
        "docs/**/*.md",
        "docs/*.py",
        "tests/**/*.md",
    )
    for path in ROOT.glob(pattern)
}


def test_files_are_found():
    assert {"scripts/test.sh", "src/svit_hf/__init__.py", "tests/contracts/test_file_rules.py"} <= CODE.keys()
    assert {"pyproject.toml", ".ci/run"} <= TEXT.keys()


def test_code_can_be_read_in_a_sitting():
    assert {name: len(lines) for name, lines in CODE.items() if len(lines) > MAX_LINES_OF.get(name, MAX_LINES)} == {}


def test_code_states_its_licence():
    # a shebang or a copyright line may come first
    assert [name for name, lines in CODE.items() if LICENCE_LINE not in lines[:2]] == []


def test_no_path_of_one_machine():
    assert {name: line for name, lines in TEXT.items() for line in lines if MACHINE_PATH.search(line)} == {}
