# SPDX-License-Identifier: Apache-2.0
"""A Space: what is in it, what is not, and that it loads without this package being installed."""

import json
from importlib.metadata import version

import pytest
from huggingface_hub import metadata_load
from packaging.requirements import Requirement
from PIL import Image


pytest.importorskip("gradio", reason="a Space states the version of gradio that it was tried with")

from svit_hf.cli import main
from svit_hf.demo.space import requirements, write_space
from svit_hf.errors import SViTError


LOAD = """
import sys
from pathlib import Path
# as for the program of a Space: its folder first, and no installation of svit_hf
sys.path = [{folder!r}] + [path for path in sys.path if not (Path(path) / "svit_hf").is_dir()]
import svit_hf
from svit_hf.demo.viewer import open_viewer
print(svit_hf.__version__, svit_hf.__file__, open_viewer({folder!r} + "/models/tiny").name)
"""


def test_space_is_complete_and_says_nothing_of_this_machine(viewer, picture_file, tmp_path):
    exif = Image.Exif()
    exif[270] = "where I live"
    Image.open(picture_file).save(tmp_path / "private.jpg", exif=exif)
    folder = tmp_path / "space"
    write_space([viewer, viewer], [tmp_path / "private.jpg"], folder)

    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "app.py", "requirements.txt", "models", "examples", "svit_hf"),
        f"svit_hf-{version('svit-hf')}.dist-info",
    }
    assert sorted(file.name for file in (folder / "models").iterdir()) == ["tiny", "tiny-2"]
    card = metadata_load(folder / "README.md")
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "unknown")
    assert card["sdk_version"] == version("gradio")
    compile((folder / "app.py").read_text(), "app.py", "exec")
    assert "MODELS = ['tiny', 'tiny-2']" in (folder / "app.py").read_text()
    for file in folder.rglob("*"):
        assert "__pycache__" not in file.parts
        if file.is_file():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content
            assert b"where I live" not in content


@pytest.mark.slow
def test_space_needs_no_installation_of_this_package(viewer, tmp_path, fresh_python):
    folder = tmp_path / "space"
    write_space([viewer], [], folder)
    printed = fresh_python("-c", LOAD.format(folder=str(folder))).split()
    assert printed == [version("svit-hf"), str(folder / "svit_hf/__init__.py"), "tiny"]


def test_requirements_are_those_of_the_package_and_of_the_demo():
    pinned = [Requirement(line) for line in requirements()]
    names = {requirement.name for requirement in pinned}
    assert {"torch", "transformers", "gradio", "pillow"} <= names
    assert not names & {"datasets", "captum", "svit-hf"}
    assert all(str(requirement.specifier).startswith("==") and "+" not in str(requirement) for requirement in pinned)


def test_folder_in_use_is_left_alone(viewer, tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space/mine.txt").write_text("mine")
    with pytest.raises(SViTError, match="which is in use"):
        write_space([viewer], [], tmp_path / "space")
    assert [file.name for file in (tmp_path / "space").iterdir()] == ["mine.txt"]


def test_command_writes_it_and_says_what_comes_next(model_dir, picture_file, tmp_path, capsys):
    space = str(tmp_path / "space")
    assert main(["demo", str(model_dir), "--examples", picture_file, "--space", space]) == 0
    printed = capsys.readouterr().out
    assert f"pip install -r {space}/requirements.txt && python {space}/app.py" in printed
    assert "hf repos create USER/NAME" in printed
    assert json.loads((tmp_path / "space/models/tiny/config.json").read_text())["model_type"] == "svit"
    assert (tmp_path / "space/examples/01.png").is_file()
