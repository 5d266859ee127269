# SPDX-License-Identifier: Apache-2.0
"""The files that state versions agree: pyproject.toml, the pins, CITATION.cff, the changelog."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import svit_hf


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def pins_of(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(pin) for package, pin in (line.split("==") for line in lines)}


PINS = pins_of("constraints.txt")
FLOOR_PINS = pins_of("constraints-floor.txt")
REQUIREMENTS = [
    requirement
    for text in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    if canonicalize_name((requirement := Requirement(text)).name) != PROJECT["name"]
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_within_its_bounds(requirement):
    name = canonicalize_name(requirement.name)
    assert PINS[name] in requirement.specifier
    assert FLOOR_PINS.get(name, PINS[name]) in requirement.specifier


@pytest.mark.parametrize("name", ["huggingface-hub", "transformers"])
def test_lower_bound_is_what_the_floor_tests(name):
    (specifiers,) = [r.specifier for r in REQUIREMENTS if canonicalize_name(r.name) == name]
    (lower,) = [Version(s.version) for s in specifiers if s.operator == ">="]
    # a bound with fewer digits means the same version: 1.31 is 1.31.0
    assert FLOOR_PINS[name] == lower < PINS[name]


def test_version_is_one():
    assert svit_hf.__version__ == PROJECT["version"] == CITATION["version"]


def test_citation_prefers_the_paper():
    paper = CITATION["preferred-citation"]
    assert paper["title"] == "Vision Transformer with Super Token Sampling"
    assert [author["family-names"] for author in paper["authors"]] == ["Huang", "Zhou", "Cao", "He", "Tan"]
    # what the format's schema requires of software
    assert {"cff-version", "message", "title", "authors", "license"} <= CITATION.keys()
    assert CITATION["license"] == PROJECT["license"]


def test_changelog_knows_what_is_unreleased():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
