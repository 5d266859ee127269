# SPDX-License-Identifier: Apache-2.0
"""Folders as people have them: what is a split, what is a class, and what is not used."""

import gc
import os
import unicodedata
from functools import partial

import pytest
from picture_data import picture, rows_of, write_folder

from svit_hf import cli
from svit_hf.data.folders import split_of_name
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.errors import DataError, SViTError
from svit_hf.tasks import task_class
from svit_hf.tasks.opening import find_split


def make(root, *paths):
    """Write a picture to each path; red is its number."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))


def labelled_files(root, split="train", **options):
    source = open_source(DataOptions(str(root), **options), split)
    return {os.path.relpath(row.image, root): source.label_names[row.label] for row in rows_of(source)}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training_Set", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("trainset", "train"),
        ("valid_set", "validation"),
        ("val2017", "validation"),
        ("dev", "validation"),
        ("test_set", "test"),
        ("holdout", "test"),
        ("test_tube", None),
        ("train_station", None),
        ("trainval", None),
        ("train_test", None),
        ("cats", None),
        ("2023", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "val2017"),
        ("images/train", "images/val"),
        ("train", "holdout"),
        ("Train", "valid_set"),
    ],
)
def test_usual_layouts_are_understood(tmp_path, train, validation):
    make(tmp_path, f"{train}/cat/a.png", f"{train}/dog/b.png", f"{validation}/cat/c.png", f"{validation}/dog/d.png")
    # what lies beside pictures in such folders
    make(tmp_path, "labels_of_images.png") if "/" not in train else None
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1")
    assert labelled_files(tmp_path) == {f"{train}/cat/a.png": "cat", f"{train}/dog/b.png": "dog"}
    assert labelled_files(tmp_path, "eval") == {f"{validation}/cat/c.png": "cat", f"{validation}/dog/d.png": "dog"}


def test_class_is_the_folder_below_the_split(tmp_path):
    make(tmp_path, "train/cats/2023/x.png", "train/cats/persian/long/y.png", "train/dogs/z.png", "val/dogs/old/w.png")
    assert labelled_files(tmp_path) == {
        "train/cats/2023/x.png": "cats",
        "train/cats/persian/long/y.png": "cats",
        "train/dogs/z.png": "dogs",
    }
    assert labelled_files(tmp_path, "eval") == {"val/dogs/old/w.png": "dogs"}


def test_what_is_not_used_is_counted(tmp_path, capsys):
    make(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "overview.png", "train/stray.png")
    make(
        tmp_path, "__MACOSX/train/cat/a.png", ".git/x.png", "train/cat/.hidden.png", "seg_pred/1.png", "seg_pred/2.png"
    )
    for name in ("Thumbs.db", "notes.txt", "train/cat/raw.nef", "train/cat/no_suffix"):
        (tmp_path / name).write_bytes(b"something")
    source = open_source(DataOptions(str(tmp_path)), "train")
    assert source.num_samples == 2
    remarks = "\n".join(source.remarks)
    for line in (
        "not used: images beside the folders of the splits (1)",
        "not used: images in train, beside the folders of its classes (1)",
        "not used: images in seg_pred, which is no split and has no folders of classes (2)",
        "not used: the folder __MACOSX, which is hidden or of the system (1)",
        "not used: the folder .git, which is hidden or of the system (1)",
        "not used: hidden files and files of the system (2)",
        "not used: files .txt (1)",
        "not used: files .nef (1)",
        "not used: files without a suffix (1)",
    ):
        assert line in remarks
    assert cli.main(["data", "inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not used: images in seg_pred" in shown
    assert shown.endswith(f"svit-hf train --recipe smoke --output-dir runs/smoke --data.path {tmp_path}\n")


def test_flat_split_matters_only_when_it_is_used(tmp_path):
    make(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/1.png", "test/2.png")
    assert len(labelled_files(tmp_path)) == 2
    with pytest.raises(SViTError, match=r"the split 'test' of .*'test/1\.png', are in no folder of a class"):
        open_source(DataOptions(str(tmp_path)), "eval")
    assert open_source(DataOptions(str(tmp_path)), "eval", labelled=False).num_samples == 2


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train/cat/a.png", "extra/cat/b.png"), r"some folders are splits and others are not: extra, train\."),
        (("val/cat/a.png", "valid/cat/b.png"), r"both 'val' and 'valid' are the split validation"),
        (("a.png", "b.png"), "are in no folder of a class"),
        (("train/cat/a.png", "test/cat/b.png", "test/unknown/c.png"), r"of these, unknown are not among the classes"),
    ],
    ids=["split-and-other", "two-of-one-split", "flat", "class-that-training-lacks"],
)
def test_what_is_not_clear_is_refused_with_what_is_there(tmp_path, paths, message):
    make(tmp_path, *paths)
    with pytest.raises(SViTError, match=message):
        open_source(DataOptions(str(tmp_path)), "eval" if "test" in paths[-1] else "train")


def test_one_folder_that_is_called_like_a_split_is_a_class_and_said(tmp_path):
    make(tmp_path, "car/a.png", "train/b.png", "tram/c.png")
    source = open_source(DataOptions(str(tmp_path)), "train")
    assert source.label_names == ("car", "train", "tram")
    assert "the folder or label 'train' is taken for a class" in source.remarks


def test_links_are_followed_and_circles_are_not(tmp_path):
    make(tmp_path, "store/persian/a.png", "data/train/dog/b.png", "data/val/dog/c.png")
    (tmp_path / "data" / "train" / "cat").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "test").symlink_to(tmp_path / "data" / "val")
    (tmp_path / "data" / "train" / "dog" / "again").symlink_to(tmp_path / "data")
    assert labelled_files(tmp_path / "data") == {"train/cat/persian/a.png": "cat", "train/dog/b.png": "dog"}
    assert len(labelled_files(tmp_path / "data", "eval", eval_split="test")) == 1
    source = open_source(DataOptions(str(tmp_path / "data")), "train")
    assert "not used: the link again, which leads back to a folder that it is in (1)" in source.remarks


@pytest.mark.parametrize("name", ["my data [2024]", "a*b", "what?", "ünï cödé"])
def test_names_with_brackets_spaces_and_stars(tmp_path, name):
    write_folder(tmp_path / name / "train", range(4), ["cat [1]", "dog"])
    assert open_source(DataOptions(str(tmp_path / name)), "train").label_names == ("cat [1]", "dog")


def test_upper_case_and_modern_suffixes(tmp_path):
    make(tmp_path, "cat/A.PNG", "cat/b.jfif", "dog/c.JPEG", "dog/d.webp")
    assert len(labelled_files(tmp_path)) == 4


def test_names_that_differ_in_spelling_alone_are_said(tmp_path):
    accents = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    make(tmp_path, "Cats/a.png", "cats/b.png", *(f"{name}/c.png" for name in accents))
    source = open_source(DataOptions(str(tmp_path)), "train")
    assert len(source.label_names) == 4
    assert sum("differ only in spelling" in remark for remark in source.remarks) == 2


def test_single_class_is_said(tmp_path):
    make(tmp_path, "pictures/a.png", "pictures/b.png")
    assert "there is only one class, 'pictures'" in open_source(DataOptions(str(tmp_path)), "train").remarks


# `datasets` leaves the table open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_table_without_file_names_is_refused(tmp_path):
    make(tmp_path, "train/a.png", "train/b.png")
    (tmp_path / "train" / "metadata.csv").write_text("name,label\na.png,x\nb.png,y\n")
    with pytest.raises(SViTError, match="file_name"):
        open_source(DataOptions(str(tmp_path)), "train")
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_table_of_labels(tmp_path):
    make(tmp_path, "train/a.png", "train/b.png", "train/c.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.png,x\nb.png,y\nc.png,x\n")
    source = open_source(DataOptions(str(tmp_path)), "train")
    assert [source.label_names[source.row(i).label] for i in range(3)] == ["x", "y", "x"]
    gc.collect()


OPEN = {"classes": open_source, "boxes": partial(find_split, task_class("detection"))}


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("content", ["file_name,label\n", "\n"], ids=["heading", "empty"])
def test_table_without_rows_is_named(tmp_path, kind, content):
    make(tmp_path, "train/a.png", "test/a.png")
    (tmp_path / "test" / "metadata.csv").write_text(content)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.png,x\n")
    with pytest.raises(DataError, match=r"the split 'test' of .* has no images: the table .* has no rows"):
        OPEN[kind](DataOptions(str(tmp_path)), "eval")
    (tmp_path / "train" / "metadata.csv").write_text(content)
    with pytest.raises(DataError, match=r"where test/metadata\.csv, train/metadata\.csv has no rows"):
        OPEN[kind](DataOptions(str(tmp_path)), "train")
