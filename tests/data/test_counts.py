# SPDX-License-Identifier: Apache-2.0
from picture_data import write_parquet

from svit_hf.data import counts
from svit_hf.data.counts import read_footer


def test_footer_of_a_local_file_is_read_again_only_if_the_file_has_changed(tmp_path, monkeypatch):
    file = tmp_path / "train.parquet"
    write_parquet(file, range(6), rows_per_group=4)
    read, read_metadata = [], counts.pq.read_metadata
    monkeypatch.setattr(counts.pq, "read_metadata", lambda opened: read.append(1) or read_metadata(opened))
    assert [read_footer(str(file)).rows for _ in range(2)] == [(4, 2)] * 2
    assert len(read) == 1
    write_parquet(file, range(9), rows_per_group=4)
    assert read_footer(str(file)).rows == (4, 4, 1)
