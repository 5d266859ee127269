# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: no network, one thread, seeded, no state shared with the user's caches."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torchvision_on_cpu


TESTS = Path(__file__).parent
# what says nothing about the versions of Transformers and huggingface_hub: programs of the checkout, promises about
# files, what reads data or draws, and kernels, which need triton
NEWEST_ONLY = (
    *("ablation/", "benchmark/", "convert/", "data/", "demo/", "kernels/", "recipes/", "samplers/", "scripts/"),
    *("visualization/", "contracts/test_documents", "contracts/test_file", "contracts/test_import"),
    *("tasks/test_evaluation", "tasks/test_prediction", "training/test_dense_runs"),
)

# caches of the Hub, of data sets and of remote code: fresh in every process, gone afterwards
_caches = tempfile.TemporaryDirectory(prefix="svit-tests-")

# read while transformers, datasets and torch are imported, and inherited by every process that a test starts
os.environ.update(
    HF_HOME=_caches.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    # what is compiled once is kept with this environment
    TORCH_EXTENSIONS_DIR=str(Path(sys.prefix, "torch_extensions")),
    PYTHONPATH=os.pathsep.join(filter(None, [str(TESTS / "child_process"), os.environ.get("PYTHONPATH")])),
)
torchvision_on_cpu.install()

import torch  # noqa: E402


torch.set_num_threads(1)
# read when triton is first imported, which may be anywhere: without a GPU its kernels run in its interpreter, and
# nothing else here uses triton
if not torch.accelerator.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config, items):
    missing = {}
    if "campaign" not in config.getoption("markexpr"):
        missing["campaign"] = "runs with -m campaign"
    if not torch.accelerator.is_available():
        missing["gpu"] = "no accelerator"
    if os.environ.get("SVIT_TEST_NETWORK") != "1":
        missing["network"] = "SVIT_TEST_NETWORK is not 1"
    for item in items:
        if "fresh_python" in getattr(item, "fixturenames", ()):
            item.add_marker("process")
        if item.path.relative_to(TESTS).as_posix().startswith(NEWEST_ONLY):
            item.add_marker("newest")
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def processes_without_torchao():
    """Let what tests start not see torchao, which Transformers imports wherever it is, and which writes to stderr."""
    # not while this file is imported: the workers, which start after that, test with torchao
    os.environ["SVIT_TEST_HIDDEN_PACKAGES"] = "torchao"


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """Refuse connections to other machines."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test without the marker `network` connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session")
def real_images():
    """Return the folder of real image data sets, one parquet folder each."""
    folder = os.environ.get("SVIT_TEST_DATA")
    if not folder:
        pytest.skip("SVIT_TEST_DATA does not name a folder of real images")
    return Path(folder)


@pytest.fixture
def fresh_python(tmp_path):
    """Return a function that runs Python in a process of its own and gives what it printed.

    It takes Python's command line (`"-c", code` or `"-m", "svit_hf", ...`); `hidden` names packages that this process
    shall not find, besides torchao; `environment` more variables. A status other than 0 fails the test with all that
    was printed.
    """

    def run(*arguments, hidden=(), environment=None):
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"SVIT_TEST_HIDDEN_PACKAGES": ",".join(["torchao", *hidden])} | (environment or {}),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            # a process that does not end is a failure, and not the end of the test run
            timeout=900,
        )
        assert result.returncode == 0, f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    return run


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder with room for 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    # also while the traceback of a failure holds a file open
    subprocess.run([shutil.which("umount"), "-l", folder], check=True)
