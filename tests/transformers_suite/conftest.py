# SPDX-License-Identifier: Apache-2.0
"""Collect this folder only where `run.sh` has put upstream's test files, and hold every skip against the list."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest


HERE = Path(__file__).parent
SKIPS = {
    test: group
    for group in tomllib.loads((HERE / "expected_skips.toml").read_text(encoding="utf-8"))["skip"]
    for test in group["tests"]
}
OUTCOMES = pytest.StashKey[set[str]]()

if importlib.util.find_spec("transformers_tests") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # by its path: with all of `tests` importable, its folders could be taken for packages of the same names
    shim = importlib.util.spec_from_file_location("torchvision_on_cpu", HERE.parent / "torchvision_on_cpu.py")
    torchvision_on_cpu = importlib.util.module_from_spec(shim)
    shim.loader.exec_module(torchvision_on_cpu)
    torchvision_on_cpu.install()

    import adaptations
    import sklearn.datasets
    import torch

    adaptations.import_upstream(image=Path(sklearn.datasets.__file__).parent / "images" / "china.jpg")
    # upstream writes both tensors of every comparison into a message, which takes longer than comparing them
    torch.set_printoptions(threshold=4, edgeitems=1)


@pytest.fixture(autouse=True, scope="session")
def _names_in_static_tables():
    with adaptations.names_in_static_tables():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail a test that is skipped against the list, or runs against it. A subtest's skip counts as its test's."""
    report = yield
    test = item.nodeid.partition("::")[2].replace("::", ".")
    expected = SKIPS.get(test)
    outcomes = item.stash.setdefault(OUTCOMES, set())
    outcomes.add(report.outcome)
    if report.skipped:
        reason = report.longrepr[2]
        if expected is None:
            _fail(report, f"skipped, and not in expected_skips.toml: {reason}")
        elif not re.search(expected["reason"], reason):
            _fail(report, f"skipped for another reason than in expected_skips.toml, {expected['reason']!r}: {reason}")
    elif report.when == "teardown" and outcomes == {"passed"} and expected and not expected.get("environment"):
        _fail(report, f"not skipped, although it is in expected_skips.toml: {expected['reason']!r}")
    return report


def _fail(report, message):
    report.outcome = "failed"
    report.longrepr = message
