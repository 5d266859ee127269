# SPDX-License-Identifier: Apache-2.0
import shutil
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from svit_hf import SViTForImageClassification, cli, doctor, save_with_code
from svit_hf.doctor import DoctorCommand, Finding, examine_model, examine_package, examine_torchvision
from svit_hf.extras import missing_packages, torchvision_error
from svit_hf.hub.probe import PROBE_FILE, write_probe


@pytest.fixture
def torchvision(monkeypatch, tmp_path):
    """Return a function that installs a torchvision whose package and `extension` are the given code."""
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}

    def install(package, extension=""):
        folder = tmp_path / "torchvision"
        folder.mkdir()
        (folder / "__init__.py").write_text(package)
        (folder / "extension.py").write_text(extension)
        for name in known:
            del sys.modules[name]
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(doctor, "version", lambda name: "9.9")
        torchvision_error.cache_clear()

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(known)
    torchvision_error.cache_clear()


def test_broken_torchvision_is_found_with_its_remedy(torchvision):
    torchvision("raise RuntimeError('operator torchvision::nms does not exist')")
    # asked twice: the second time it looks as if it were not installed
    for _ in range(2):
        finding = examine_torchvision()
        assert "operator torchvision::nms does not exist" in finding.state
        assert "pip uninstall torchvision" in finding.remedy
    assert missing_packages("vision") == ["torchvision"]


@pytest.mark.parametrize("has_operators", [True, False])
def test_torchvision_that_imports_is_not_broken(torchvision, has_operators):
    torchvision("", f"def _has_ops(): return {has_operators}")
    finding = examine_torchvision()
    assert not finding.remedy
    assert finding.state.startswith("9.9")
    assert ("without its compiled operators" in finding.state) != has_operators


def test_absent_torchvision_is_not_broken(monkeypatch):
    def not_found(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", not_found)
    finding = examine_torchvision()
    assert not finding.remedy
    assert "not installed" in finding.state


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [("packaging>=1", False), ("packaging<1", True), ("no-such-package>=2", True)],
    ids=["within-bounds", "out-of-bounds", "missing"],
)
def test_package_is_compared_with_what_is_needed(text, is_broken):
    finding = examine_package(Requirement(text))
    assert bool(finding.remedy) == is_broken
    assert not is_broken or text in finding.remedy


def test_status_is_zero_if_nothing_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "keep_freed_memory", lambda: "left alone")
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2", "no-such-package; extra == 'demo'"])
    assert DoctorCommand().run() == 0
    printed = capsys.readouterr().out
    assert "Nothing is broken." in printed
    for topic in ("torch  ", "torchvision", "devices", "memory allocator", "extra quickstart"):
        assert topic in printed


def test_status_is_one_if_something_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("a", "fine"), Finding("bb", "bad", "mend it")])
    assert DoctorCommand().run() == 1
    assert capsys.readouterr().out == "a   fine\nbb  bad\n\nbroken: bb: mend it\n"


def test_import_error_is_a_finding(monkeypatch):
    def fail():
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(cli, "import_package", fail)
    finding = doctor.examine_imports()
    assert "RuntimeError: operator torchvision::nms" in finding.state
    assert finding.remedy


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    model = SViTForImageClassification(tiny_config(initializer_range=0.5)).eval()
    save_with_code(model, folder)
    write_probe(model, folder)
    return folder


@pytest.fixture
def model_folder(saved_model, tmp_path):
    return shutil.copytree(saved_model, tmp_path / "run" / "model")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def findings_of(folder):
    return {finding.topic: finding for finding in examine_model(str(folder))}


def test_whole_model_is_not_broken(model_folder):
    # the folder of a run stands for its finished model
    for folder in (model_folder, model_folder.parent):
        findings = findings_of(folder)
        assert list(findings) == ["model", "weights", "image processor", "probe"]
        assert not any(finding.remedy for finding in findings.values())
        assert "SViTForImageClassification, 27,245 parameters" in findings["model"].state
        assert findings["probe"].state.startswith("the outputs are those of the probe")


def test_weights_that_are_not_loaded_are_named(model_folder):
    change_weights(
        model_folder, lambda tensors: tensors.update({"head.weight": tensors.pop("classifier.weight").clone()})
    )
    findings = findings_of(model_folder)
    assert findings["weights"].state == "missing: classifier.weight; unexpected: head.weight"
    assert findings["weights"].remedy
    assert "the outputs differ from those of the probe" in findings["probe"].state


def test_other_weights_than_those_of_the_probe_are_found(model_folder):
    change_weights(model_folder, lambda tensors: tensors["classifier.bias"].add_(1.0))
    findings = findings_of(model_folder)
    assert not findings["weights"].remedy
    assert "the outputs differ from those of the probe" in findings["probe"].state
    assert findings["probe"].remedy


def test_model_without_a_probe_is_not_broken(model_folder):
    (model_folder / PROBE_FILE).unlink()
    finding = findings_of(model_folder)["probe"]
    assert f"there is no {PROBE_FILE}" in finding.state
    assert not finding.remedy


@pytest.mark.parametrize("model", ["someone/svit", "nowhere at all"])
def test_model_that_is_nowhere_is_a_finding(model, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("a", "fine")])
    assert cli.main(["doctor", model]) == 1
    assert f"{model} cannot be loaded" in capsys.readouterr().out
