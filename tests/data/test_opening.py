# SPDX-License-Identifier: Apache-2.0
"""Classes by name, damaged and hostile files, what is kept for validation, and how a source is recognised."""

import io
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_data import number_of, picture, rows_of, write_folder, write_parquet, write_tar

from svit_hf import cli
from svit_hf.data.counts import names_of
from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.loading import EvaluationLoader
from svit_hf.data.opening import held_out, labels_of, open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.sources import differences
from svit_hf.errors import DataError, SViTError


def named(source):
    """Return the number that each picture shows, with the name of its class."""
    return {number_of(row): source.label_names[row.label] for row in rows_of(source)}


# names


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_classes_are_matched_by_name_over_splits_and_shards(tmp_path, streaming):
    write_parquet(tmp_path / "train-0.parquet", range(6), names=("even", "odd"))
    write_parquet(tmp_path / "train-1.parquet", range(7, 13), names=("odd", "even"))
    write_parquet(tmp_path / "test.parquet", range(20, 26), names=("odd", "even"))
    options = DataOptions(str(tmp_path), streaming=streaming)
    train, test = open_source(options, "train"), open_source(options, "eval")
    assert train.label_names == test.label_names == ("even", "odd")
    # in a file with the names (odd, even), an even number is labelled 0 and so "odd"
    assert named(train) == {n: ["even", "odd"][n % 2] for n in range(6)} | {
        n: ["odd", "even"][n % 2] for n in range(7, 13)
    }
    assert named(test) == {n: ["odd", "even"][n % 2] for n in range(20, 26)}


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
@pytest.mark.parametrize("file", ["train-1.parquet", "test.parquet"])
def test_other_classes_are_refused_with_both_lists(tmp_path, file, streaming):
    write_parquet(tmp_path / "train-0.parquet", range(4), names=("cat", "dog"))
    write_parquet(tmp_path / "test.parquet", range(4), names=("cat", "dog"))
    write_parquet(tmp_path / file, range(4), names=("cat", "fox"))
    split = "eval" if file.startswith("test") else "train"
    with pytest.raises(SViTError, match=r"classes cat, fox; of these, fox are not among .* training split, cat, dog"):
        open_source(DataOptions(str(tmp_path), streaming=streaming), split)


def test_integers_that_occur_are_the_classes_and_that_is_said(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(3), names=(), label=[70, 10, 70])
    source = open_source(DataOptions(str(tmp_path)), "train")
    assert source.label_names == ("10", "70")
    assert "the labels are 2 of the integers up to 70; only those that occur are classes" in source.remarks
    assert named(source) == {0: "70", 1: "10", 2: "70"}


# labels that are none


@pytest.mark.parametrize("label", [-1, None, 7], ids=["minus-one", "null", "beyond"])
def test_impossible_label_is_found_at_the_start(tmp_path, label, capsys):
    write_parquet(tmp_path / "train.parquet", range(4), names=(), label=[0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", range(4), names=(), label=[0, label, 1, label])
    open_source(DataOptions(str(tmp_path)), "train")
    message = rf"the label in row 1 of test\.parquet is {label}, .* 2 classes .* 1 more labels are none either"
    with pytest.raises(DataError, match=message):
        open_source(DataOptions(str(tmp_path)), "eval")
    assert cli.main(["data", "inspect", str(tmp_path)]) == 3
    assert f"{label}: 2, which is no class of the training split" in capsys.readouterr().out


def test_negative_labels_alone_are_no_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(2), names=(), label=[-1, -1])
    with pytest.raises(SViTError, match="a negative one is no class"):
        open_source(DataOptions(str(tmp_path)), "train")


def test_lists_are_no_labels(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.List(datasets.Value("int64"))})
    table = pa.table({"image": [{"bytes": picture(0), "path": None}], "label": [[0, 1]]}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "train.parquet")
    options = DataOptions(str(tmp_path), label_column="label")
    with pytest.raises(SViTError, match=r"the label in row 0 of .* is \[0, 1\]; a class is a string or an integer"):
        open_source(options, "train")
    assert cli.main(["data", "inspect", str(tmp_path), "--label-column", "label"]) == 2


# empty and damaged


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_empty_split_is_refused_and_an_empty_file_among_others_is_not(tmp_path, streaming):
    write_parquet(tmp_path / "train-0.parquet", range(4))
    write_parquet(tmp_path / "train-1.parquet", [])
    write_parquet(tmp_path / "train-2.parquet", range(4, 6))
    write_parquet(tmp_path / "test.parquet", [])
    options = DataOptions(str(tmp_path), streaming=streaming)
    assert named(open_source(options, "train")) == {n: ["even", "odd"][n % 2] for n in range(6)}
    with pytest.raises(SViTError, match=r"the split 'test' of .* has no images"):
        open_source(options, "eval")


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_truncated_parquet_is_named(tmp_path, streaming):
    write_parquet(tmp_path / "train-0.parquet", range(40))
    write_parquet(tmp_path / "train-1.parquet", range(40))
    whole = (tmp_path / "train-1.parquet").read_bytes()
    (tmp_path / "train-1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SViTError, match=r"train-1\.parquet cannot be read|cannot be read: .*train-1\.parquet"):
        open_source(DataOptions(str(tmp_path), streaming=streaming), "train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shard_that_is_deleted_while_it_is_needed_is_named(tmp_path, num_workers):
    write_parquet(tmp_path / "train.parquet", range(40), rows_per_group=10)
    source = open_source(DataOptions(str(tmp_path), streaming=True), "train")
    (tmp_path / "train.parquet").unlink()
    loader = EvaluationLoader(source, lambda image, key: None, batch_size=4, num_workers=num_workers)
    with pytest.raises(DataError, match=r"train\.parquet, row group 0 cannot be read: FileNotFoundError"):
        list(loader)


@pytest.mark.parametrize("kind", ["without-a-label", "twice", "no-tar"])
def test_odd_tars_are_named(tmp_path, kind):
    file = tmp_path / "train.tar"
    write_tar(file, range(4))
    if kind == "no-tar":
        file.write_bytes(b"this is no tar at all" * 100)
    else:
        with tarfile.open(file, "a") as archive:
            for suffix in ("png",) if kind == "without-a-label" else ("cls", "png", "cls", "cls"):
                member = tarfile.TarInfo(f"part.1/sample00099.{suffix}")
                member.size = len(picture(9))
                archive.addfile(member, io.BytesIO(picture(9)))
    with pytest.raises(SViTError, match=r"train\.tar|cannot be read"):
        rows_of(open_source(DataOptions(str(tmp_path)), "train"))


# hostile


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_files_that_a_data_set_names_are_not_opened(tmp_path, streaming):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(200))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = [{"bytes": None, "path": str(secret)}, {"bytes": picture(3), "path": str(secret)}]
    table = pa.table({"image": images, "label": [0, 0]}, schema=features.arrow_schema)
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    options = DataOptions(str(tmp_path / "data"), streaming=streaming)
    named_file, stored = (row.image for row in rows_of(open_source(options, "train")))
    assert decode_image(stored).getpixel((0, 0))[0] == 3
    with pytest.raises(DecodingError, match="there are no bytes"):
        decode_image(named_file)
    assert cli.main(["data", "shard", str(tmp_path / "data"), str(tmp_path / "shards")]) == 0
    written = b"".join(file.read_bytes() for file in (tmp_path / "shards").iterdir())
    assert picture(200) not in written
    assert picture(3) in written


# a share for validation


def test_held_out_images_are_a_share_of_each_class_and_follow_from_the_seed():
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    kept = held_out(labels, 0.2, seed=0)
    assert [sum(labels[i] == c for i in kept) for c in range(4)] == [10, 2, 1, 0]
    assert kept == held_out(labels, 0.2, seed=0) == sorted(kept)
    assert kept != held_out(labels, 0.2, seed=1)
    # an image's chance depends on its place alone
    assert set(held_out(labels, 0.1, seed=0)) < set(kept)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_share_of_the_training_images_is_kept_for_validation(tmp_path, kind):
    if kind == "folder":
        write_folder(tmp_path, range(40), ["cat", "dog"])
    else:
        write_parquet(tmp_path / "train.parquet", range(40), names=("cat", "dog"))
    options = DataOptions(str(tmp_path), validation_share=0.25)
    train, validation = open_source(options, "train"), open_source(options, "eval")
    assert (train.num_samples, validation.num_samples) == (30, 10)
    assert named(train) | named(validation) == {n: ["cat", "dog"][n % 2] for n in range(40)}
    assert not named(train).keys() & named(validation).keys()
    assert sorted(labels_of(validation)) == [0] * 5 + [1] * 5
    assert [row.sample_id for row in rows_of(validation)] == list(range(10))
    assert "25%, kept for validation" in validation.description


def test_share_is_refused_where_it_makes_no_sense(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(4))
    with pytest.raises(SViTError, match="read as a stream, of which no part can be kept"):
        open_source(DataOptions(str(tmp_path), validation_share=0.5, streaming=True), "train")
    write_parquet(tmp_path / "val.parquet", range(4))
    with pytest.raises(SViTError, match="has a split 'validation'; leave `validation_share` out"):
        open_source(DataOptions(str(tmp_path), validation_share=0.5), "train")
    with pytest.raises(SViTError, match=r"`validation_share` is 1; it has to be at least 0 and below 1"):
        DataOptions(validation_share=1)


# recognised again


def test_a_source_is_recognised_and_differences_are_named(tmp_path):
    write_folder(tmp_path / "a", range(8), ["cat", "dog"])
    fingerprint = open_source(DataOptions(str(tmp_path / "a")), "train").fingerprint()
    assert differences(fingerprint, open_source(DataOptions(str(tmp_path / "a")), "train").fingerprint()) == []
    (tmp_path / "a" / "dog" / "new.png").write_bytes(picture(9))
    found = open_source(DataOptions(str(tmp_path / "a")), "train").fingerprint()
    assert differences(fingerprint, found) == ["there were 8 images and there are 9", "'dog/new.png' is new"]
    (tmp_path / "a" / "dog" / "new.png").unlink()
    (tmp_path / "a" / "dog").rename(tmp_path / "a" / "hound")
    found = open_source(DataOptions(str(tmp_path / "a")), "train").fingerprint()
    assert differences(fingerprint, found)[0] == "the classes were cat, dog and are cat, hound"


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_a_shard_that_was_replaced_is_named(tmp_path, streaming):
    write_parquet(tmp_path / "train-0.parquet", range(8))
    write_parquet(tmp_path / "train-1.parquet", range(8))
    options = DataOptions(str(tmp_path), streaming=streaming)
    before = open_source(options, "train").fingerprint()
    write_parquet(tmp_path / "train-1.parquet", range(9))
    (first, second) = differences(before, open_source(options, "train").fingerprint())
    assert first == "there were 16 images and there are 17"
    assert second.startswith("'train-1.parquet' was ")
    # other pictures, as many
    write_parquet(tmp_path / "train-1.parquet", range(8), broken=(1, 2))
    assert len(differences(before, open_source(options, "train").fingerprint())) == 1


def test_another_share_is_another_source(tmp_path):
    write_folder(tmp_path, range(20), ["cat", "dog"])
    before, after = (
        open_source(DataOptions(str(tmp_path), validation_share=0.2, validation_seed=seed), "train").fingerprint()
        for seed in (0, 1)
    )
    assert differences(before, after)


def test_addresses_are_named_without_what_signs_them(tmp_path):
    assert names_of(["https://u:p@h/a.parquet?sig=1", "https://u:p@h/b.parquet?sig=2"]) == [
        "a.parquet?sig=***",
        "b.parquet?sig=***",
    ]
    with pytest.raises(SViTError) as caught:
        open_source(DataOptions("http://user:secret@127.0.0.1:9/train.parquet"), "train")
    assert "secret" not in str(caught.value)
    assert "http://***@127.0.0.1:9" in str(caught.value)
