# SPDX-License-Identifier: Apache-2.0
"""What ranks that `rank_launch.py` forks do; their processes find it by this module's name."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from svit_hf.cli import main
from svit_hf.errors import SViTError
from svit_hf.training import loop
from svit_hf.training.accelerator import on_rank_zero
from svit_hf.training.agreement import Agreement
from svit_hf.training.recipe_files import read_recipe
from svit_hf.training.train import train


def run_commands(*commands):
    """Run the program with each list of arguments."""
    for arguments in commands:
        assert main([str(argument) for argument in arguments]) == 0


class Killed(BaseException):
    """What nothing catches."""


def train_twice_and_be_killed_once(folder):
    """Train by `recipe.json` in `whole`, and in `killed`, where a run ends after two updates and goes on."""
    recipe = read_recipe(folder / "recipe.json")
    train(recipe, folder / "whole")
    update = loop.Run._train_one_update

    def die(self, batches):
        if self.progress.update == 2:
            raise Killed
        update(self, batches)

    loop.Run._train_one_update = die
    try:
        train(recipe, folder / "killed")
    except Killed:
        loop.Run._train_one_update = update
        train(recipe, folder / "killed")


def agree():
    """Exchange statistics, signals and an error."""
    accelerator = Accelerator()
    rank = accelerator.process_index
    model = nn.BatchNorm1d(1, momentum=1.0)
    agreement = Agreement(model, accelerator.device, micro_batches=2)

    def pass_forward(*values):
        agreement.start_micro_batch()
        model(torch.tensor(values)[:, None])
        agreement.end_micro_batch()

    pass_forward(0.0 + rank, 2.0 + rank)
    good, signals = agreement.exchange(torch.tensor(1.0 + rank), torch.tensor(3.0), (8, rank, rank, 0))
    assert good
    assert signals.read() == (3.0, 16, 1, 3.0, 1, 0)
    assert model.running_mean.item() == 1.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # one rank's loss is not finite: both skip
    pass_forward(5.0, 7.0)
    good, signals = agreement.exchange(torch.tensor(float("nan") if rank else 1.0), torch.tensor(1.0), (8, 0, 0, 0))
    assert not good
    assert not signals.read().is_finite
    assert model.running_mean.item() == 1.5
    assert torch.equal(model.running_var, before["running_var"])

    def fail():
        raise SViTError("told by rank 0")

    with pytest.raises(SViTError, match="told by rank 0"):
        on_rank_zero(fail, accelerator)
    print("agreed", rank)  # noqa: T201 - what the test reads
    accelerator.end_training()
