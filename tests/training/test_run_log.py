# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from svit_hf.training import run_log
from svit_hf.training.run_log import EVALUATION, UPDATE, RunLog, read_log


def rows_of(first, last):
    for update in range(first, last + 1):
        yield UPDATE, {"update": update, "epoch": update / 2, "loss": 1.0, "learning_rate": 0.1}
        if update % 2 == 0:
            yield EVALUATION, {"update": update, "epoch": update // 2, "weights": "raw", "accuracy": 0.5}


def write(run_dir, last, **past):
    said = []
    log = RunLog(run_dir, say=said.append, **past)
    first = 1 + max((row["update"] for row in read_log(run_dir) if row["kind"] == UPDATE), default=0)
    for kind, row in rows_of(first, last):
        log.add(kind, **row)
    size = log.sync()
    log.close()
    return size, said


def places(run_dir):
    return [(row["kind"], row["update"]) for row in read_log(run_dir)]


def test_rows_after_the_checkpoint_are_cut_off(tmp_path):
    size, _ = write(tmp_path, 2)
    write(tmp_path, 5, updates={UPDATE: 2, EVALUATION: 2}, size=size)
    # the checkpoint is saved before its evaluation
    _, said = write(tmp_path, 0, updates={UPDATE: 4, EVALUATION: 2})
    assert places(tmp_path)[-2:] == [(UPDATE, 3), (UPDATE, 4)]
    assert not [line for line in said if "lost" in line]


def zero(content):
    # as after a power cut
    return content[:-40] + bytes(40)


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-10], lambda content: content[:-1], zero, lambda content: b""]
)
def test_log_that_is_too_short_is_cut_to_whole_rows_and_goes_on(tmp_path, damage):
    size, _ = write(tmp_path, 3)
    path = tmp_path / "log.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    _, said = write(tmp_path, 5, updates={UPDATE: 3, EVALUATION: 2}, size=size)
    assert ["lost rows" in line for line in said].count(True) == 1
    assert places(tmp_path)[-1] == (UPDATE, 5)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_curves_are_drawn_unless_there_is_no_matplotlib(tmp_path, monkeypatch):
    said = []
    for name, has_matplotlib in (("with", True), ("without", False)):
        if not has_matplotlib:
            monkeypatch.setattr(run_log, "find_spec", lambda package: None)
        (tmp_path / name).mkdir()
        write(tmp_path / name, 4)
        log = RunLog(tmp_path / name, {UPDATE: 4, EVALUATION: 4}, say=said.append)
        log.draw()
        log.close()
        assert (tmp_path / name / "metrics.csv").read_text().splitlines()[1] == "2,1,raw,0.5"
        assert (tmp_path / name / "curves.png").exists() == has_matplotlib
    assert len(said) == 1
    assert 'needs matplotlib: pip install "svit-hf[curves]"' in said[0]
