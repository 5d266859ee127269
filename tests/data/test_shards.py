# SPDX-License-Identifier: Apache-2.0
import pyarrow.parquet as pq
import pytest
from picture_data import picture, rows_of, write_folder, write_parquet, write_tar

from svit_hf import cli
from svit_hf.data import shards
from svit_hf.data.opening import open_source
from svit_hf.data.options import DataOptions
from svit_hf.data.shards import ShardOptions, write_shards
from svit_hf.errors import DataError, SViTError


def opened(options):
    source = open_source(options, "train")
    return source, rows_of(source)


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "stream"])
def test_shards_hold_every_picture_byte_for_byte_in_random_order(tmp_path, streaming):
    write_parquet(tmp_path / "in" / "train.parquet", range(50), rows_per_group=9)
    write_parquet(tmp_path / "in" / "test.parquet", range(7))
    options = ShardOptions(rows_per_shard=20, row_group_size=8, seed=1)
    written = write_shards(DataOptions(str(tmp_path / "in"), streaming=streaming), tmp_path / "out", options)
    assert [file.name for file in written["train"].files] == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f.name for split in written.values() for f in split.files
    }
    source, rows = opened(DataOptions(str(tmp_path / "out"), streaming=True))
    assert source.shard_sizes == (8, 8, 4, 8, 8, 4, 8, 2)
    assert source.label_names == ("even", "odd")
    numbers = [next(n for n in range(50) if row.image == picture(n)) for row in rows]
    assert sorted(numbers) == list(range(50))
    assert numbers != list(range(50))
    assert [row.label for row in rows] == [n % 2 for n in numbers]


def test_size_closes_a_file(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(100))
    size = len(picture(0))
    options = ShardOptions(megabytes=30 * size / 1e6, row_group_size=10)
    written = write_shards(DataOptions(str(tmp_path / "train.parquet")), tmp_path / "out", options)
    rows = [pq.read_metadata(file).num_rows for file in written["train"].files]
    assert sum(rows) == 100
    assert all(30 <= number <= 40 for number in rows[:-1])


def test_images_that_were_not_written_are_missed(tmp_path, monkeypatch):
    write_parquet(tmp_path / "in" / "train.parquet", range(20))
    row_groups = shards._row_groups
    monkeypatch.setattr(shards, "_row_groups", lambda *arguments: (group[1:] for group in row_groups(*arguments)))
    with pytest.raises(DataError, match="19 images of split 'train' were written and 20 were to be; nothing is kept"):
        write_shards(DataOptions(str(tmp_path / "in")), tmp_path / "out", ShardOptions())
    assert not (tmp_path / "out").exists()


def test_folder_of_files_becomes_shards_with_their_classes(tmp_path):
    write_folder(tmp_path / "in", range(10))
    write_shards(DataOptions(str(tmp_path / "in")), tmp_path / "out", ShardOptions())
    source, rows = opened(DataOptions(str(tmp_path / "out"), streaming=True))
    assert source.label_names == ("cat", "train")
    assert sorted(row.image for row in rows) == sorted(picture(number) for number in range(10))


def test_nothing_is_left_of_shards_that_failed(tmp_path):
    write_parquet(tmp_path / "in" / "train.parquet", range(4), name=["a", "b", "a", "b"])
    write_parquet(tmp_path / "in" / "validation.parquet", range(1), name=["c"])
    with pytest.raises(SViTError, match="none of the 2 classes"):
        write_shards(DataOptions(str(tmp_path / "in"), label_column="name"), tmp_path / "out", ShardOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(SViTError, match="which is in use"):
        write_shards(DataOptions(str(tmp_path / "in")), tmp_path / "in", ShardOptions())


def test_command_inspects_and_shards(tmp_path, capsys):
    write_parquet(tmp_path / "in" / "train.parquet", range(20), rows_per_group=6, broken=(3, 17))
    # broken images are something to know
    assert cli.main(["data", "inspect", str(tmp_path / "in")]) == 3
    shown = capsys.readouterr().out
    assert "images    20 in column 'image'" in shown
    assert "shards    4 in 1 files, 2 to 6 images each" in shown
    assert "12 wide, 10 high, RGB: 18" in shown
    assert "even: 10" in shown
    assert "broken    2" in shown
    assert "train.parquet, row 17: " in shown
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--rows-per-shard", "5"]
    assert cli.main(["data", "shard", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "train: 18 images in 4 files" in shown
    assert "2 that cannot be decoded were left out" in shown
    assert f"svit-hf train --recipe smoke --output-dir runs/smoke --data.path {tmp_path / 'out'}" in shown
    assert cli.main(["data", "shard", *arguments]) == 2
    assert cli.main(["data", "inspect", str(tmp_path / "nowhere" / "at-all")]) == 2


def test_index_of_tars_lets_them_stream(tmp_path, capsys):
    write_tar(tmp_path / "train-0.tar", range(4))
    write_tar(tmp_path / "train-1.tar", range(4, 11))
    index = tmp_path / "index.json"
    assert cli.main(["data", "inspect", str(tmp_path / "*.tar"), "--write-index", str(index)]) == 0
    assert "sample" not in capsys.readouterr().out
    source, rows = opened(DataOptions(str(tmp_path / "*.tar"), streaming=True, index=str(index)))
    assert source.label_names == ("0", "1", "2")
    assert [row.label for row in rows] == [number % 3 for number in range(11)]
