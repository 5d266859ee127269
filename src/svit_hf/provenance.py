# SPDX-License-Identifier: Apache-2.0
"""Where numbers come from: command, versions, commit, device."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from svit_hf.urls import without_credentials


PACKAGES = ("svit-hf", "torch", "transformers", "accelerate", "datasets", "pillow")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what has to be known to get the same numbers again."""
    return {
        "command": without_credentials(shlex.join(["svit-hf", *sys.argv[1:]])),
        "versions": versions(),
        "commit": commit_of_source(),
        "device": device_name(device),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on, and of Python."""
    return {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """Return what to call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def commit_of_source() -> str | None:
    """Return the commit of the checkout that this file is in, marked if it has changes; `None` outside of one."""
    # not just any repository above this file: one that holds the package may be the user's own
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
