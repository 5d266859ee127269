# SPDX-License-Identifier: Apache-2.0
"""Runs of several ranks on this machine's CPU, started by torchrun as on a cluster, or forked."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.multiprocessing import start_processes

from svit_hf.training.checkpointing import checkpoints_of
from svit_hf.training.run_log import TIMING_FIELDS, read_log


# a bias before a batch norm has no gradient but rounding, which Adam turns into steps; the norm's mean follows it
CANCELLED = re.compile(r"(downsampling\.convolution|pooler\.projection)\.bias|(downsampling|pooler)\..*running_mean")
SETTINGS = {
    "data.streaming": "True",
    "data.num_workers": "2",
    "data.shuffle_block": "8",
    "optimization.batch_size": "16",
    "optimization.epochs": "2",
    "optimization.warmup_epochs": "0.5",
    # everything random that there is
    "augmentation.randaugment": "rand-m9-mstd0.5-inc1",
    "augmentation.random_erasing": "0.25",
    "mixing.mixup_alpha": "0.8",
    "mixing.cutmix_alpha": "1.0",
    "run.save_every_updates": "3",
    "run.log_every_updates": "1",
    "model.config.hidden_sizes": "[8, 12, 16, 24]",
    "model.config.depths": "[1, 1, 1, 1]",
    "model.config.num_attention_heads": "[1, 2, 2, 4]",
    "model.config.projection_dim": "32",
}


class Launch:
    """Ranks of `svit-hf train` that are at work; `run__seed="1"` sets the recipe's `run.seed`.

    `prefix` is what starts the launcher, if it is not started directly.
    """

    def __init__(self, toy_images, run_dir, *script, num_ranks=2, prefix=(), **settings):
        self.output = run_dir.with_suffix(f".{time.monotonic_ns()}.txt")
        settings = {name.replace("__", "."): value for name, value in settings.items()}
        settings = SETTINGS | {"data.path": str(toy_images)} | settings
        command = ["-m", "svit_hf", "train", "--recipe", "smoke", "--output-dir", str(run_dir)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc_per_node",
                    str(num_ranks),
                ]
                + (list(script) or command),
                env=os.environ | {"ACCELERATE_USE_CPU": "1", "PYTHONWARNINGS": "default"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for_update(self, update):
        # of the last update that was read, one is under way
        while f"update {update}/" not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.02)

    def ranks(self):
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill_at(self, update):
        self.wait_for_update(update)
        # the last rank first: the others wait for it, and torchrun ends them, hard
        for rank in reversed(self.ranks()):
            os.kill(rank, signal.SIGKILL)
        self.end()

    def end(self):
        self.process.wait(timeout=240)
        return self.output.read_text()


def start_ranks(function, output, *arguments, num_ranks=2):
    """Call a function in as many processes as there are ranks; what they write goes to the file `output`.

    They see the variables that torchrun gives them, but not its launcher; a single one sees none. They are forked from
    a process that has imported the package, which takes each rank of `Launch` seconds. The function is of a module
    beside this one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["svit_hf.cli", "svit_hf.training.train", "svit_hf.evaluation"])
    output.touch()
    arguments = num_ranks, port, function, output, arguments
    return start_processes(_be_rank, arguments, num_ranks, join=False, start_method="forkserver")


def run_ranks(function, output, *arguments, num_ranks=2):
    """Call a function in as many processes as there are ranks, and return what they wrote."""
    ranks = start_ranks(function, output, *arguments, num_ranks=num_ranks)
    while not ranks.join():
        pass
    return output.read_text()


def _be_rank(rank, num_ranks, port, function, output, arguments):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
    if num_ranks > 1:
        os.environ.update({name: str(value) for name, value in names.items()})
    # of the processes that read images: how this one was started would go on
    multiprocessing.set_start_method("fork", force=True)
    with output.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*arguments)


def log_of(run_dir):
    return [{key: row[key] for key in row.keys() - TIMING_FIELDS} for row in read_log(run_dir)]


def assert_same_run(first, second):
    """Compare logs, weights and the optimizer of two runs, bit for bit."""
    assert log_of(first) == log_of(second)
    folders = [checkpoints_of(run)[-1] for run in (first, second)]
    assert folders[0].name == folders[1].name
    weights = [path.parent.name for path in folders[0].glob("*/model.safetensors")]
    assert weights
    for name in weights:
        tensors = [load_file(folder / name / "model.safetensors") for folder in folders]
        torch.testing.assert_close(*tensors, rtol=0, atol=0)
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"] for folder in folders]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)
