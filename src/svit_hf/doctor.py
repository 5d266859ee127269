# SPDX-License-Identifier: Apache-2.0
"""`svit-hf doctor`: what is installed, what the machine offers, and what is broken.

Every package is asked for its version without being imported, because a broken one is what this command is for.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement

from svit_hf.extras import EXTRAS, install_hint, missing_packages
from svit_hf.memory_allocator import keep_freed_memory


class Finding(NamedTuple):
    """Hold one line of the report, and what to do if it is about something broken."""

    topic: str
    state: str
    remedy: str = ""


@dataclass
class DoctorCommand:
    """Check this installation and say what is wrong with it.

    The exit status is 1 if something is broken. Optional packages that are missing are not.
    """

    def run(self) -> int:
        """Print the report and return the exit status."""
        findings = list(examine())
        width = max(len(finding.topic) for finding in findings)
        lines = [f"{finding.topic:<{width}}  {finding.state}" for finding in findings]
        broken = [finding for finding in findings if finding.remedy]
        lines += ["", *(f"broken: {finding.topic}: {finding.remedy}" for finding in broken)]
        lines += [] if broken else ["Nothing is broken."]
        print("\n".join(lines))  # noqa: T201 - a program's result
        return 1 if broken else 0


def examine() -> Iterator[Finding]:
    """Look at everything that has made trouble before."""
    yield Finding("svit-hf", version("svit-hf"))
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for text in requires("svit-hf") or []:
        requirement = Requirement(text)
        if requirement.marker is None:
            yield examine_package(requirement)
    yield examine_torchvision()
    yield examine_imports()
    for extra in EXTRAS:
        missing = missing_packages(extra)
        state = f"without {', '.join(missing)}; to have it: {install_hint(extra)}" if missing else "complete"
        yield Finding(f"extra {extra}", state)
    yield examine_devices()
    yield Finding("memory allocator", keep_freed_memory())


def examine_package(requirement: Requirement) -> Finding:
    """Compare the installed version of a package with the one that is needed."""
    name = requirement.name
    wanted = f"{name}{requirement.specifier}"
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(name, "missing", f'install it with: pip install "{wanted}"')
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(name, f"{installed}, needed is {wanted}", f'install it with: pip install "{wanted}"')
    return Finding(name, installed)


def examine_torchvision() -> Finding:
    """Find out whether torchvision is absent, whole, or broken.

    Transformers uses torchvision wherever it is installed. One that cannot load its extension, which is so for a build
    that does not belong to the installed torch, makes Transformers' own imports fail.
    """
    try:
        installed = version("torchvision")
    except PackageNotFoundError:
        return Finding("torchvision", "not installed; Pillow prepares the images")
    try:
        has_operators = import_module("torchvision.extension")._has_ops()
    # whatever a broken package raises is the finding: mostly RuntimeError, OSError or ImportError
    except Exception as error:
        remedy = (
            "SViT and Transformers work without it: pip uninstall torchvision. Or install the build that belongs to "
            "the installed torch, from where that came from."
        )
        return Finding("torchvision", f"{installed} cannot be imported: {error}", remedy)
    state = "" if has_operators else ", without its compiled operators; SViT does not need them"
    return Finding("torchvision", f"{installed}{state}")


def examine_imports() -> Finding:
    """Import what every use of SViT imports."""
    topic = "import svit_hf"
    try:
        import_module("svit_hf.model.modeling_svit")
        import_module("svit_hf.model.image_processing_pil_svit")
    # as above: the error is the finding
    except Exception as error:
        return Finding(topic, f"{type(error).__name__}: {error}", "mend what is broken above, or reinstall svit-hf")
    return Finding(topic, "works")


def examine_devices() -> Finding:
    """Name what computations can run on."""
    topic = "devices"
    try:
        import torch
    # as above: the error is the finding
    except Exception as error:
        return Finding(topic, f"unknown, torch cannot be imported: {error}", "reinstall torch")
    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return Finding(topic, ", ".join(devices))
