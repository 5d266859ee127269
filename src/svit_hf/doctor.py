# SPDX-License-Identifier: Apache-2.0
"""`svit-hf doctor`: what is installed, what the machine offers, and what is broken; also in the folder of a model.

Nothing is imported before it is examined, because a broken package is what this command is for.
"""

import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, NamedTuple

import tyro
from packaging.requirements import Requirement

from svit_hf.errors import SViTError, listed
from svit_hf.extras import EXTRAS, TORCHVISION_REMEDY, install_hint, missing_packages, torchvision_error
from svit_hf.memory_allocator import keep_freed_memory


# outputs of the same weights on other processors and versions of torch differ by less, those of other weights by more
PROBE_TOLERANCE = 1e-3


class Finding(NamedTuple):
    """Line of the report, with what to do if it is about something broken."""

    topic: str
    state: str
    remedy: str = ""


@dataclass
class DoctorCommand:
    """Check this installation, and a model if one is named.

    A model is loaded, and compared with the probe that is saved beside its weights: an image and the logits that it
    has to have. So a checkpoint is found whose weights are not loaded, or that is computed differently here. The exit
    status is 1 if something is broken. Optional packages that are missing are not.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run, whose finished model is checked.
    """

    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="MODEL")] = None

    def run(self) -> int:
        """Print the report and return the exit status."""
        findings = list(examine())
        if self.model is not None:
            findings += examine_model(self.model)
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


def examine_model(model: str) -> Iterator[Finding]:
    """Load a model and compare it with its probe."""
    try:
        from svit_hf.evaluation.checkpoints import download, find_model, load_and_compare, load_image_processor
        from svit_hf.hub.probe import PROBE_FILE, compare_with_probe
        from svit_hf.tasks.saved_models import dense_head

        folder = download(find_model(model))
        head = dense_head(folder)
        loaded, differences = load_and_compare(folder, head.model_class) if head else load_and_compare(folder)
    except (SViTError, ImportError) as error:
        yield Finding("model", f"{model} cannot be loaded", str(error))
        return
    num_parameters = sum(parameter.numel() for parameter in loaded.parameters())
    yield Finding("model", f"{model}: {type(loaded).__name__}, {num_parameters:,} parameters")
    if differences:
        state = "; ".join(f"{kind}: {listed(names)}" for kind, names in differences.items())
        remedy = "the weights are not those of this model. Save them again with `save_pretrained`, or mend config.json"
        yield Finding("weights", state, remedy)
    else:
        yield Finding("weights", "all of them are loaded")
    try:
        yield Finding("image processor", type(load_image_processor(folder)).__name__)
        difference = compare_with_probe(loaded, folder)
    # what a damaged probe or a model that cannot compute it raises is the finding
    except Exception as error:
        yield Finding("probe", f"{type(error).__name__}: {error}", "get the files of the model again")
        return
    if difference is None:
        yield Finding("probe", f"there is no {PROBE_FILE} beside the weights to compare with")
    elif difference <= PROBE_TOLERANCE:
        yield Finding("probe", f"the outputs are those of the probe (difference {difference:.1e})")
    else:
        yield Finding(
            "probe",
            f"the outputs differ from those of the probe by {difference:.1e}",
            "the weights are others than those that were saved, or these versions of torch and Transformers compute "
            "something else",
        )


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
    """Find out whether torchvision is absent, whole, or broken."""
    try:
        installed = version("torchvision")
    except PackageNotFoundError:
        return Finding("torchvision", "not installed; Pillow prepares the images")
    if error := torchvision_error():
        remedy = f"{TORCHVISION_REMEDY}. Until then Pillow prepares the images"
        return Finding("torchvision", f"{installed} cannot be imported: {error}", remedy)
    has_operators = import_module("torchvision.extension")._has_ops()
    state = "" if has_operators else ", without its compiled operators; SViT does not need them"
    return Finding("torchvision", f"{installed}{state}")


def examine_imports() -> Finding:
    """Import what every use of SViT imports."""
    topic = "import svit_hf"
    try:
        with warnings.catch_warnings():
            # about torchvision, which has a line of its own
            warnings.simplefilter("ignore")
            import_module("svit_hf.cli").import_package()
    # whatever a broken package raises is the finding
    except Exception as error:
        return Finding(topic, f"{type(error).__name__}: {error}", "mend what is broken above, or reinstall svit-hf")
    return Finding(topic, "works")


def examine_devices() -> Finding:
    """Name what computations can run on."""
    topic = "devices"
    try:
        import torch
    # as above
    except Exception as error:
        return Finding(topic, f"unknown, torch cannot be imported: {error}", "reinstall torch")
    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    devices += [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return Finding(topic, ", ".join(devices))
