# SPDX-License-Identifier: Apache-2.0
"""Faster implementations of the super-token operations and their neighbours, and which of them can run where.

The model asks for them by name (`model/implementation_svit.py`) and works without this folder. Here live the names and
the choice; an implementation is a folder of its own, which registers its operators with PyTorch when it is first used.
README.md beside this file has the mathematics, the contract, and how to add one.
"""

import logging
import os
from functools import cache
from importlib import import_module
from typing import Protocol

import torch


logger = logging.getLogger(__name__)

# 1 keeps every model of the process on PyTorch's own operators: for reports of bugs, and to find out who is at fault
KILL_SWITCH = "SVIT_DISABLE_KERNELS"

# folders beside this file, the fastest first: `auto` takes the first that can run
IMPLEMENTATIONS = ("triton",)


class Implementation(Protocol):
    """State what the module `svit_hf.kernels.NAME` of an implementation has. Importing it loads nothing heavy."""

    AUTO_DEVICES: tuple[str, ...]
    """Types of the devices on which `auto` prefers it to PyTorch's own operators."""

    @staticmethod
    def find_obstacle(device: torch.device | None, dtype: torch.dtype | None, sampler: str | None) -> str | None:
        """Return why it cannot run on such tokens, in words that follow "because". None stands for anything."""

    @staticmethod
    def load() -> None:
        """Register its operators as `torch.ops.svit_hf_NAME`."""


@cache
def resolve(name: str, device: torch.device, dtype: torch.dtype, sampler: str | None = None) -> str:
    """Find out what runs the super-token operations, and make it ready; the choice of `auto` is said once.

    Args:
        name: "auto", "eager", or one of `IMPLEMENTATIONS`.
        device: Of the tokens.
        dtype: Of the tokens.
        sampler: The super-token sampler, where one is used.

    Returns:
        "eager" for PyTorch's own operators, or one of `IMPLEMENTATIONS`, whose operators are registered by then.

    Raises:
        ValueError: If `name` is no such name, or asks for an implementation that cannot run; the message says why.
    """
    if name == "auto":
        name = _choose(device, dtype, sampler)
    require(name, device, dtype, sampler)
    if name != "eager":
        _implementation(name).load()
    return name


def require(
    name: str, device: torch.device | None = None, dtype: torch.dtype | None = None, sampler: str | None = None
) -> None:
    """Refuse a name that cannot be used; what is left out can be anything.

    Raises:
        ValueError: As in `resolve`.
    """
    if name in ("auto", "eager"):
        return
    if name not in IMPLEMENTATIONS:
        allowed = ", ".join(["auto", "eager", *IMPLEMENTATIONS])
        raise ValueError(f"`super_token_implementation` is {name!r}; allowed are {allowed}.")
    obstacle = _find_obstacle(name, device, dtype, sampler)
    if obstacle is not None:
        raise ValueError(
            f"`super_token_implementation` is {name!r}, which cannot be used because {obstacle}; "
            "'auto' and 'eager' always can."
        )


def _choose(device: torch.device, dtype: torch.dtype, sampler: str | None) -> str:
    for name in IMPLEMENTATIONS:
        if device.type not in _implementation(name).AUTO_DEVICES:
            continue
        obstacle = _find_obstacle(name, device, dtype, sampler)
        if obstacle is None:
            _say_once(logging.INFO, f"{name} runs the super-token operations on {device} in {dtype}.")
            return name
        _say_once(
            logging.WARNING,
            f"PyTorch's own operators run the super-token operations on {device} in {dtype}, and not the faster "
            f"{name}, because {obstacle}.",
        )
    return "eager"


# operators with a sampler and without one are asked for apart, and mostly get the same answer
@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def _find_obstacle(
    name: str, device: torch.device | None, dtype: torch.dtype | None, sampler: str | None
) -> str | None:
    if os.environ.get(KILL_SWITCH) == "1":
        return f"the environment variable {KILL_SWITCH} is 1"
    return _implementation(name).find_obstacle(device, dtype, sampler)


def _implementation(name: str) -> Implementation:
    return import_module(f"svit_hf.kernels.{name}")  # type: ignore[return-value]
