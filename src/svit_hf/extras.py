# SPDX-License-Identifier: Apache-2.0
"""The optional packages: which command needs them, and what to say when they are missing."""

from importlib.util import find_spec

from svit_hf.errors import SViTError


# names to import, per extra of pyproject.toml
EXTRAS = {
    "quickstart": ("accelerate", "datasets", "evaluate", "sklearn"),
    "train": ("accelerate", "datasets", "evaluate", "matplotlib", "sklearn"),
    "kernels": ("triton",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "quantization": ("torchao",),
    "benchmark": ("matplotlib",),
    "dense": ("faster_coco_eval", "pyarrow"),
    "vision": ("torchvision",),
}


def missing_packages(extra: str) -> list[str]:
    """Return the packages of an extra that cannot be found; nothing is imported."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def install_hint(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "svit-hf[{extra}]"'


def require_extra(extra: str, command: str) -> None:
    """Refuse to go on without the packages that a command needs.

    Raises:
        SViTError: If one is missing; the message says how to install them.
    """
    if missing := missing_packages(extra):
        raise SViTError(f"`svit-hf {command}` needs {', '.join(missing)}; install it with: {install_hint(extra)}")
