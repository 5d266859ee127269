# SPDX-License-Identifier: Apache-2.0
"""What every Python that a test starts does first: tests/conftest.py puts this folder on PYTHONPATH.

Torchvision is made importable as in the tests themselves; packages named in SVIT_TEST_HIDDEN_PACKAGES, with commas
between them, look as if they were not installed.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path


class _VisiblePackagesFinder:
    """Find what the ordinary path finder does, except the hidden packages."""

    hidden = frozenset(filter(None, os.environ.get("SVIT_TEST_HIDDEN_PACKAGES", "").split(",")))
    invalidate_caches = importlib.machinery.PathFinder.invalidate_caches
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.hidden:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)


if _VisiblePackagesFinder.hidden:
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = _VisiblePackagesFinder

if "torchvision" not in _VisiblePackagesFinder.hidden:
    location = Path(__file__).resolve().parents[1] / "torchvision_on_cpu.py"
    spec = importlib.util.spec_from_file_location("torchvision_on_cpu", location)
    # under its name, so that the conftest of a test worker does not make a second copy, which would declare twice
    sys.modules["torchvision_on_cpu"] = torchvision_on_cpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torchvision_on_cpu)
    torchvision_on_cpu.install()
