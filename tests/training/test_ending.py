# SPDX-License-Identifier: Apache-2.0
"""A run that fails ends: on every rank, soon, with one message, whatever failed and however many workers there are."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_data import picture
from rank_launch import Launch

from svit_hf.data.counts import SourceIndex


pytestmark = [pytest.mark.slow, pytest.mark.process]

NUM_IMAGES = 160
# with a machine that is busy with other tests
MOST_SECONDS = 10
SETTINGS = {"optimization__epochs": "40", "run__evaluate_every_epochs": "0", "data__max_bad_share": "0.5"}


def write(file, labels, broken=()):
    """Write a file with an integer label for each picture."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [
        {"bytes": picture(n, size=(24, 24))[: 20 if n in broken else None], "path": None} for n in range(len(labels))
    ]
    table = pa.table({"image": images, "label": labels}, schema=features.arrow_schema)
    pq.write_table(table, file, row_group_size=20)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.parquet", [n % 4 for n in range(NUM_IMAGES)])
    counts = {"train": {"train.parquet": (20,) * (NUM_IMAGES // 20)}}
    SourceIndex(tuple("0123"), counts).write(tmp_path / "index.json")
    return folder


def workers_of(ranks):
    return [
        int(child)
        for rank in ranks
        for child in Path(f"/proc/{rank}/task/{rank}/children").read_text().split()
        if "svit_hf" in Path(f"/proc/{child}/cmdline").read_text()
    ]


def fail_by_label(folder, launch):
    write(folder / "train.parquet", [n % 4 if n < 120 else None for n in range(NUM_IMAGES)])


def fail_by_broken_images(folder, launch):
    write(folder / "train.parquet", [n % 4 for n in range(NUM_IMAGES)], broken=range(NUM_IMAGES))


def fail_by_missing_shard(folder, launch):
    (folder / "train.parquet").unlink()


def fail_by_killed_worker(folder, launch):
    os.kill(workers_of(launch.ranks()[1:])[0], signal.SIGKILL)


CASES = [
    (fail_by_label, 2, r"the label in row \d+ of .* is None", 3),
    (fail_by_label, 0, r"the label in row \d+ of .* is None", 3),
    (fail_by_broken_images, 2, "images of a batch are broken", 3),
    (fail_by_broken_images, 0, "images of a batch are broken", 3),
    (fail_by_missing_shard, 2, "cannot be read: FileNotFoundError", 3),
    (fail_by_missing_shard, 0, "cannot be read: FileNotFoundError", 3),
    (fail_by_killed_worker, 2, "ended from outside", 3),
]


@pytest.mark.parametrize(
    ("fail", "num_workers", "message", "status"),
    [
        # one of them each time, all of them in the campaign
        pytest.param(*case, marks=[pytest.mark.campaign] if number else [], id=f"{case[0].__name__}-{case[1]}")
        for number, case in enumerate(CASES)
    ],
)
def test_failure_ends_every_rank(folder, tmp_path, fail, num_workers, message, status):
    settings = SETTINGS | {"data__num_workers": str(num_workers), "data__index": str(tmp_path / "index.json")}
    launch = Launch(folder, tmp_path / "run", **settings)
    launch.wait_for_update(2)
    ranks = launch.ranks()
    children = [*ranks, *workers_of(ranks)]
    assert len(children) == 2 + 2 * num_workers
    fail(folder, launch)
    while not (said := re.findall(f"^svit-hf: .*{message}.*$", launch.output.read_text(), re.MULTILINE)):
        assert launch.process.poll() is None, launch.output.read_text()
        time.sleep(0.1)
    deadline = time.monotonic() + MOST_SECONDS
    while alive := [pid for pid in children if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, f"{alive} of {children} are alive\n{launch.output.read_text()}"
        time.sleep(0.1)
    output = launch.end()
    assert len(said) == 1, output
    assert f"exitcode  : {status}" in output
    # torchrun has a traceback of its own
    ours = output.split("torch/distributed/elastic")[0]
    assert "Traceback" not in ours, output


@pytest.mark.campaign
def test_too_little_shared_memory_is_said(folder, tmp_path):
    # in a mount namespace of its own, so that nobody else's memory shrinks
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a file system cannot be mounted here")
    settings = SETTINGS | {"data__num_workers": "2", "data__index": str(tmp_path / "index.json")}
    launch = Launch(folder, tmp_path / "run", prefix=prefix, **settings)
    output = launch.end()
    said = re.findall("^svit-hf: a process that reads images found no shared memory: .*", output, re.MULTILINE)
    assert len(said) == 1, output
    assert "exitcode  : 3" in output
    assert "Traceback" not in output.split("torch/distributed/elastic")[0], output
