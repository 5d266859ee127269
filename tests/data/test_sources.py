# SPDX-License-Identifier: Apache-2.0
"""Every kind of source: files, splits, columns, names of classes, counts."""

import os
import re

import fsspec
import pytest
import torch
from picture_data import number_of, rows_of, write_folder, write_parquet, write_tar

from svit_hf.data.counts import SourceIndex
from svit_hf.data.loading import EvaluationLoader
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import UNLABELLED
from svit_hf.errors import SViTError


def numbers_of(source):
    """Return the number that each picture shows, and its label's name, in the order of the source."""
    rows = rows_of(source)
    assert [row.sample_id for row in rows] == list(range(source.num_samples))
    return [(number_of(row), source.label_names[row.label]) for row in rows]


def unlabelled_numbers_of(source):
    """Return the number that each picture shows, in the order of the source."""
    rows = rows_of(source)
    assert {row.label for row in rows} == {UNLABELLED}
    return [number_of(row) for row in rows]


def expected(numbers, names):
    return [(number, names[number % len(names)]) for number in numbers]


@pytest.mark.parametrize("streaming", [None, False, True], ids=["found", "indexed", "stream"])
def test_parquet_folder(tmp_path, streaming):
    write_parquet(tmp_path / "train-00000.parquet", range(10), rows_per_group=4)
    write_parquet(tmp_path / "train-00001.parquet", range(10, 15))
    write_parquet(tmp_path / "val.parquet", range(20, 23))
    (tmp_path / "README.md").write_text("not a picture")
    train, evaluation = (open_source(DataOptions(str(tmp_path), streaming=streaming), s) for s in ("train", "eval"))
    assert train.is_streaming is evaluation.is_streaming is bool(streaming)
    assert train.label_names == ("even", "odd")
    assert numbers_of(train) == expected(range(15), ["even", "odd"])
    assert numbers_of(evaluation) == expected(range(20, 23), ["even", "odd"])
    assert "15 images, 2 classes" in train.description
    if streaming:
        assert train.shard_sizes == (4, 4, 2, 5)
        assert train.shard_names[1] == "train-00000.parquet, row group 1"
        assert train.locate(10) == ("train-00001.parquet", 0)
        assert [row.sample_id for row in train.rows(1, 1, 3)] == [5, 6]


def test_path_is_a_file_or_a_glob(tmp_path):
    write_parquet(tmp_path / "train-a.parquet", range(3))
    write_parquet(tmp_path / "train-b.parquet", range(3, 5))
    for path, numbers in (("train-b.parquet", range(3, 5)), ("train-*.parquet", range(5))):
        source = open_source(DataOptions(str(tmp_path / path), streaming=True), "train")
        assert numbers_of(source) == expected(numbers, ["even", "odd"])


def test_path_may_be_relative(tmp_path, monkeypatch):
    write_folder(tmp_path / "pictures" / "train", range(4))
    monkeypatch.chdir(tmp_path)
    assert open_source(DataOptions("pictures"), "train").num_samples == 4


def test_words_of_file_names_tell_the_split(tmp_path):
    for name in ("test-0", "training_x", "my.dev.data"):
        write_parquet(tmp_path / f"{name}.parquet", range(len(name)))
    assert open_source(DataOptions(str(tmp_path)), "train").num_samples == len("training_x")
    # validation comes before test
    assert open_source(DataOptions(str(tmp_path)), "eval").num_samples == len("my.dev.data")
    assert open_source(DataOptions(str(tmp_path), eval_split="test"), "eval").num_samples == len("test-0")
    with pytest.raises(SViTError, match="`eval_split` names another") as caught:
        open_source(DataOptions(str(tmp_path), eval_split="holdout"), "eval")
    assert {"train", "test", "validation"} <= set(re.findall(r"\w+", str(caught.value)))


def test_file_without_a_split_beside_others_is_refused(tmp_path):
    for name in ("train", "extra"):
        write_parquet(tmp_path / f"{name}.parquet", range(3))
    with pytest.raises(SViTError, match=r"extra\.parquet"):
        open_source(DataOptions(str(tmp_path)), "train")


@pytest.mark.parametrize("split", ["train", "eval"])
def test_image_folder_with_splits(tmp_path, split):
    # classes and files that are called like splits are neither
    write_folder(tmp_path / "train", range(10), ["cat", "test", "train"])
    write_folder(tmp_path / "val", range(30, 32), ["cat", "train"])
    source = open_source(DataOptions(str(tmp_path)), split)
    assert not source.is_streaming
    # the same classes in both, though one of them is not among the evaluation pictures
    assert source.label_names == ("cat", "test", "train")
    numbers, names = (range(10), ["cat", "test", "train"]) if split == "train" else (range(30, 32), ["cat", "train"])
    assert sorted(numbers_of(source)) == expected(numbers, names)


def test_image_folder_is_not_streamed(tmp_path):
    write_folder(tmp_path, range(6))
    with pytest.raises(SViTError, match="one shard, in order"):
        open_source(DataOptions(str(tmp_path), streaming=True), "train")


def test_tars(tmp_path):
    write_tar(tmp_path / "train-0.tar", range(4))
    write_tar(tmp_path / "train-1.tar", range(4, 11))
    indexed = open_source(DataOptions(str(tmp_path)), "train")
    assert numbers_of(indexed) == expected(range(11), ["0", "1", "2"])
    with pytest.raises(SViTError, match="--write-index FILE"):
        open_source(DataOptions(str(tmp_path), streaming=True), "train")
    files = {"train-0.tar": (4,), "train-1.tar": (7,)}
    SourceIndex(("0", "1", "2"), {"train": files}).write(tmp_path / "index.json")
    options = DataOptions(str(tmp_path / "*.tar"), streaming=True, index=str(tmp_path / "index.json"))
    stream = open_source(options, "train")
    assert stream.shard_sizes == (4, 7)
    assert numbers_of(stream) == expected(range(11), ["0", "1", "2"])


def test_index_that_does_not_fit_is_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", range(4))
    index = tmp_path / "index.json"
    options = DataOptions(str(tmp_path / "*.parquet"), streaming=True, index=str(index))
    for files, message in (
        ({"train-1.parquet": (4,)}, r"2 files are only in one of them, such as train-0\.parquet"),
        ({"train-0.parquet": (6,)}, "ends after 4 rows, but 6 were counted"),
    ):
        SourceIndex((), {"train": files}).write(index)
        with pytest.raises(SViTError, match=message):
            numbers_of(open_source(options, "train"))
    index.write_text("[]")
    with pytest.raises(SViTError, match="is no index of a data set"):
        open_source(options, "train")


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["b", "c", "a", "b"], ("a", "b", "c")), ([30, 0, 1, 1], ("0", "1", "30"))],
    ids=["strings", "integers"],
)
def test_labels_without_names(tmp_path, labels, names):
    numbers = range(4)
    write_parquet(tmp_path / "train.parquet", numbers, name=labels)
    write_parquet(tmp_path / "test.parquet", [9], name=[labels[0]])
    options = DataOptions(str(tmp_path), label_column="name")
    source = open_source(options, "train")
    assert source.label_names == names
    assert numbers_of(source) == [(n, str(label)) for n, label in zip(numbers, labels, strict=True)]
    # the same number as in training
    assert numbers_of(open_source(options, "eval")) == [(9, str(labels[0]))]


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_images_without_labels(tmp_path, format, streaming):
    if format == "parquet":
        write_parquet(tmp_path / "train.parquet", range(7), rows_per_group=4, names=())
    else:
        write_tar(tmp_path / "train.tar", range(7), num_classes=0)
    options = DataOptions(str(tmp_path), streaming=streaming)
    source = open_source(options, "train", labelled=False)
    assert source.is_streaming is streaming
    assert source.label_names == ()
    assert "7 images, unlabelled" in source.description
    assert unlabelled_numbers_of(source) == list(range(7))
    with pytest.raises(SViTError, match="`label_column` is none of"):
        open_source(options, "train")


def test_only_split_will_do_for_images_without_labels_alone(tmp_path):
    write_parquet(tmp_path / "holiday.parquet", range(3))
    options = DataOptions(str(tmp_path))
    assert open_source(options, "eval", labelled=False).num_samples == 3
    with pytest.raises(
        SViTError, match=r"no split validation or valid or val or test, only train.*`validation_share` keeps a part"
    ):
        open_source(options, "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_labels_that_are_not_wanted_are_not_read(tmp_path, streaming):
    # two columns of labels, one of which would need an index of its names
    write_parquet(tmp_path / "train.parquet", range(5), names=(), label=["a"] * 5, category=[None, *"abcd"])
    source = open_source(DataOptions(str(tmp_path), streaming=streaming), "train", labelled=False)
    assert set(source.dataset.features) == {"image"}
    assert unlabelled_numbers_of(source) == list(range(5))


def test_ambiguous_and_missing_columns_are_listed(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(2), other=[1, 2])
    for arguments, message in (
        ({"label_column": "lable"}, r"`label_column` is 'lable', which is no column; there are image, label, other\."),
        ({"image_column": "picture"}, "`image_column` is 'picture'"),
    ):
        with pytest.raises(SViTError, match=message):
            open_source(DataOptions(str(tmp_path), **arguments), "train")


def test_real_data_sets(real_images):
    with pytest.raises(SViTError, match="`label_column` is none of image, mask, n_instances, source for sure"):
        open_source(DataOptions(str(real_images / "dsb2018_nuclei"), streaming=True), "train")
    source = open_source(DataOptions(str(real_images / "trashnet6"), streaming=True), "eval")
    assert source.label_names == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert source.num_samples == 190
    batches = EvaluationLoader(source, lambda image, key: torch.tensor(image.size), batch_size=64)
    assert sum(len(batch["labels"]) for batch in batches) == 190


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "`path` is empty"),
        ("no/such/folder", "is no data set|where there are no files"),
        ("nothing", "was not found on the Hub"),
        ("unknown://bucket/file", "cannot be opened"),
    ],
)
def test_path_to_nothing(path, message):
    with pytest.raises(SViTError, match=message):
        open_source(DataOptions(path), "train")


def test_folder_of_two_kinds_asks_for_the_format(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(2))
    write_tar(tmp_path / "train.tar", range(4))
    with pytest.raises(SViTError, match="files of parquet and webdataset"):
        open_source(DataOptions(str(tmp_path)), "train")
    assert open_source(DataOptions(str(tmp_path), format="webdataset"), "train").num_samples == 4


def test_remote_parquet_is_streamed(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(30), rows_per_group=10)
    # a file system of fsspec that is not this machine's; test_hub_data_set.py reads over HTTP
    fsspec.filesystem("memory").pipe("/pictures/train.parquet", (tmp_path / "train.parquet").read_bytes())
    source = open_source(DataOptions("memory://pictures/train.parquet"), "train")
    assert source.is_streaming
    assert source.shard_sizes == (10, 10, 10)
    loader = EvaluationLoader(
        source, lambda image, key: torch.tensor([float(image.getpixel((0, 0))[0])]), batch_size=5, num_workers=2
    )
    batches = list(loader)
    assert sorted(number for batch in batches for number in batch["sample_ids"].tolist()) == list(range(30))
    assert all(batch["pixel_values"][:, 0].tolist() == batch["sample_ids"].tolist() for batch in batches)


def test_other_columns_are_not_read(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(4), heavy=[os.urandom(2000).hex() for _ in range(4)])
    source = open_source(DataOptions(str(tmp_path), streaming=True), "train")
    assert set(source.dataset.features) == {"image", "label"}
    (batch,) = source.dataset.iter(batch_size=4)
    assert set(batch) == {"image", "label"}
    assert numbers_of(source) == expected(range(4), ["even", "odd"])
