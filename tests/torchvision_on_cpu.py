# SPDX-License-Identifier: Apache-2.0
"""Let `import torchvision` work beside a CPU build of torch, for tests only.

The released wheel's extension needs CUDA libraries. Where it cannot be loaded, importing torchvision fails with
"operator torchvision::nms does not exist", and with it much of transformers. `install` declares the schemas of the two
operators that torchvision asks for while it is imported. All that it writes in Python (transforms.v2, tv_tensors) then
runs as released; the operators themselves stay absent and raise when called.
"""

import ctypes
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


# a library's declarations live as long as the object does
_libraries = []


class _TorchvisionFinder:
    """Declare the operators right before torchvision is executed, so that torch is imported only when needed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision" or _libraries:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None or not spec.submodule_search_locations:
            return spec
        execute = spec.loader.exec_module

        def declare_and_execute(module: ModuleType) -> None:
            if not _extension_loads(Path(spec.submodule_search_locations[0])):
                _declare_operators()
            execute(module)

        spec.loader.exec_module = declare_and_execute
        return spec


def _extension_loads(folder: Path) -> bool:
    # libtorch has to be there first, as it is when torchvision loads its extension
    import torch  # noqa: F401

    for extension in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            ctypes.CDLL(str(extension))
        except OSError:
            continue
        return True
    return False


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def install() -> None:
    """Arrange for it once; does nothing where torchvision is missing, whole, or imported already."""
    installed = any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not installed:
        sys.meta_path.insert(0, _TorchvisionFinder())
