# SPDX-License-Identifier: Apache-2.0
"""The optional packages: which command needs them, and what to say when they are missing or broken."""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from svit_hf.errors import SViTError


# names to import, per extra of pyproject.toml
EXTRAS = {
    "quickstart": ("accelerate", "datasets", "evaluate", "sklearn"),
    "train": ("accelerate", "datasets", "evaluate", "sklearn"),
    "kernels": ("triton",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "quantization": ("torchao",),
    "curves": ("matplotlib",),
    "visualize": ("captum",),
    "demo": ("gradio",),
    "dense": ("faster_coco_eval", "pyarrow"),
    "vision": ("timm", "torchvision"),
}

TORCHVISION_REMEDY = (
    "Install the torchvision that belongs to the installed torch, from where that came from, or remove it: "
    "pip uninstall torchvision"
)


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that cannot be found; nothing is imported."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def install_hint(extra: str) -> str:
    """Return the command that installs an extra."""
    assert extra in EXTRAS, f"{extra} is no extra of pyproject.toml"
    return f'pip install "svit-hf[{extra}]"'


def require_extra(extra: str, command: str) -> None:
    """Refuse to go on without the packages that a command needs.

    Raises:
        SViTError: If one is missing; the message says how to install them.
    """
    if missing := missing_packages(extra):
        raise SViTError(f"`svit-hf {command}` needs {', '.join(missing)}; install it with: {install_hint(extra)}")


@cache
def torchvision_error() -> str | None:
    """Return why the installed torchvision cannot be imported; `None` if it can, or if there is none.

    One that was built for another torch fails when it is imported, and Transformers imports it wherever it is
    installed. So a broken torchvision looks in this process, from now on, as if it were not installed.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        import_module("torchvision")
    # mostly RuntimeError, OSError or ImportError, but a broken package may raise anything
    except Exception as error:
        # Python's own mark for a module that cannot be imported; the type of the table does not know it
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        return f"{type(error).__name__}: {error}"
    return None
