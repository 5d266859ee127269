# SPDX-License-Identifier: Apache-2.0
import errno
import stat
from contextlib import suppress

import pytest

from svit_hf.errors import SViTError
from svit_hf.files import files_into, is_disk_full, whole_file, whole_folder, write_text


def test_a_file_replaces_an_earlier_one_only_when_it_is_complete(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with suppress(KeyError), whole_file(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError("cut short")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    # the name that this package once used, in a folder that others may write to
    (tmp_path / ".link.partial").symlink_to(target)
    write_text(link, "new")
    assert target.read_text() == "precious"
    assert not link.is_symlink()


def test_a_file_has_the_rights_of_any_new_file(tmp_path):
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    plain.write_text("")
    write_text(whole, "")
    assert stat.S_IMODE(whole.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with suppress(KeyError), whole_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("{}")
        raise KeyError("cut short")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "config.json").write_text("{}")
    assert (tmp_path / "model" / "deep" / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    with (
        pytest.raises(SViTError, match=r"disk is full: '.*weights' was not written"),
        whole_file(tmp_path / "weights"),
    ):
        raise RuntimeError("write failed") from OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_taken_for_a_full_disk():
    assert not is_disk_full(FileNotFoundError(errno.ENOENT, "no such file", "no space left/here"))
    assert not is_disk_full(ValueError("bad shape"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert is_disk_full(RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/1"))


def test_files_take_their_places_beside_others_when_all_are_complete(tmp_path):
    folder = tmp_path / "new" / "model"
    with files_into(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "config.json").write_text("old")
    (folder / "mine.txt").write_text("mine")
    with suppress(KeyError), files_into(folder) as temporary:
        (temporary / "mine.txt").write_text("half")
        raise KeyError("cut short")
    with files_into(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "config.json").write_text("new")
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"mine.txt": "mine", "deep/config.json": "new"}
    assert {path.name for path in folder.iterdir()} == {"mine.txt", "deep"}
