# SPDX-License-Identifier: Apache-2.0
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from svit_hf.errors import SViTError
from svit_hf.extras import EXTRAS, missing_packages, require_extra


PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_is_what_pyproject_says(extra):
    stated = {
        canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["optional-dependencies"][extra]
    }
    if missing := missing_packages(extra):
        pytest.skip(f"without {', '.join(missing)} there is nothing to compare")
    distributions = packages_distributions()
    assert {canonicalize_name(distributions[name][0]) for name in EXTRAS[extra]} == stated


def test_complete_extra_is_no_error(monkeypatch):
    monkeypatch.setitem(EXTRAS, "quickstart", ("json",))
    require_extra("quickstart", "quickstart")


def test_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(EXTRAS, "quickstart", ("json", "no_such_package"))
    assert missing_packages("quickstart") == ["no_such_package"]
    with pytest.raises(SViTError, match=r"needs no_such_package; .*pip install \"svit-hf\[quickstart\]\""):
        require_extra("quickstart", "quickstart")


def test_quickstart_says_what_is_missing(fresh_python):
    code = """
import contextlib, io
from svit_hf.cli import main
with contextlib.redirect_stderr(io.StringIO()) as printed:
    status = main(["quickstart"])
print(status, printed.getvalue())
"""
    printed = fresh_python("-c", code, hidden=EXTRAS["quickstart"])
    assert printed.startswith("2 svit-hf: `svit-hf quickstart` needs accelerate, datasets, evaluate, sklearn; ")
