# SPDX-License-Identifier: Apache-2.0
"""Code that travels: what was loaded from a folder with this code in it is saved with the code again.

Transformers copies code only for classes that it loaded as remote code, and only the files of one class.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def code_files() -> list[Path]:
    """Return the files of this code, or those of them that were loaded together with this one."""
    return sorted(Path(__file__).parent.glob("*_svit.py"))


def write_code(json_file: str | os.PathLike[str], auto_map: Mapping[str, object]) -> None:
    """Let a config or preprocessing file name the classes in this code, and copy the code beside it."""
    path = Path(json_file)
    content = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": auto_map}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for source in code_files():
        shutil.copyfile(source, path.parent / source.name)
