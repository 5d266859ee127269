# SPDX-License-Identifier: Apache-2.0
"""Start of the program `svit-hf`: in a moment, and also where torch or Transformers cannot be imported.

`import svit_hf` makes SViT known to the Auto classes and imports torch and Transformers for that. The program's help,
its version and `svit-hf doctor` need neither. So the package is found here, and its `__init__.py` is executed by
`svit_hf.cli` when a command needs it.
"""

import sys
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Run `svit-hf` with the arguments of this process, and return the exit status."""
    spec = find_spec("svit_hf")
    assert spec is not None, "this file is installed together with the package"
    sys.modules.setdefault(spec.name, module_from_spec(spec))
    from svit_hf.cli import main

    return main()
