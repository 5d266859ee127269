# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from svit_hf.demo.output_folder import add_provenance, replace_own_output
from svit_hf.errors import SViTError


def write(output_dir, files, made_by="program"):
    with replace_own_output(output_dir, "report.json", made_by) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        (folder / "report.json").write_text(json.dumps(add_provenance({"result": 1}, folder, made_by)))


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def written(folder):
    return {name: text for name, text in content(folder).items() if name != "report.json"}


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "some" / "output"


def test_new_folder_is_made(output_dir):
    write(output_dir, {"a.txt": "a", "sub/b.txt": "b"})
    assert written(output_dir) == {"a.txt": "a", "sub/b.txt": "b"}
    report = json.loads((output_dir / "report.json").read_text())
    assert report == {"result": 1, "made_by": "program", "files": ["a.txt", "sub/b.txt"]}
    assert sorted(path.name for path in output_dir.iterdir()) == ["a.txt", "report.json", "sub"]


def test_empty_folder_is_used(output_dir):
    output_dir.mkdir(parents=True)
    write(output_dir, {"a.txt": "a"})
    assert written(output_dir) == {"a.txt": "a"}


def test_own_output_is_replaced_whole(output_dir):
    write(output_dir, {"a.txt": "old", "sub/b.txt": "old"})
    write(output_dir, {"a.txt": "new"})
    assert written(output_dir) == {"a.txt": "new"}
    assert not (output_dir / "sub").exists()


def test_failure_leaves_the_earlier_output(output_dir):
    write(output_dir, {"a.txt": "old"})
    before = content(output_dir)
    # the second file's folder cannot be made
    with pytest.raises(FileNotFoundError):
        write(output_dir, {"a.txt": "new", "no/such/folder": "new"})
    assert content(output_dir) == before


@pytest.mark.parametrize("name", ["mine.txt", "sub/mine.txt"])
def test_foreign_file_is_never_removed(output_dir, name):
    write(output_dir, {"a.txt": "old", "sub/b.txt": "old"})
    (output_dir / name).write_text("mine")
    before = content(output_dir)
    with pytest.raises(SViTError, match=name):
        write(output_dir, {"a.txt": "new"})
    assert content(output_dir) == before


def test_file_that_appears_meanwhile_is_not_removed(output_dir):
    write(output_dir, {"a.txt": "old"})
    # an absolute path leads out of the folder that is being written
    with pytest.raises(SViTError, match=r"mine\.txt"):
        write(output_dir, {"a.txt": "new", output_dir / "mine.txt": "mine"})
    assert written(output_dir) == {"a.txt": "old", "mine.txt": "mine"}


@pytest.mark.parametrize(
    "report",
    [None, "no json", "[]", '{"files": ["a.txt"]}', '{"made_by": "another", "files": ["a.txt"]}'],
    ids=["none", "no-json", "no-object", "unsigned", "another-program"],
)
def test_folder_of_someone_else_is_refused(output_dir, report):
    output_dir.mkdir(parents=True)
    (output_dir / "a.txt").write_text("mine")
    if report is not None:
        (output_dir / "report.json").write_text(report)
    with pytest.raises(SViTError, match=r"holds 'a\.txt'"):
        write(output_dir, {"a.txt": "new"})
    assert (output_dir / "a.txt").read_text() == "mine"


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SViTError, match="is no folder"):
        write(tmp_path / "file", {})
    with pytest.raises(SViTError, match="cannot be written"):
        write(tmp_path / "file" / "below", {})
