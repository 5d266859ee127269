# SPDX-License-Identifier: Apache-2.0
"""Which kernels there are, and which of them can run where."""

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
KERNELS = ("triton",)


class Kernels(Protocol):
    """Contents of the module `svit_hf.kernels.NAME`, which loads nothing heavy when it is imported."""

    AUTO_DEVICES: tuple[str, ...]
    """Types of the devices on which `auto` prefers these kernels to PyTorch's own operators."""

    @staticmethod
    def find_obstacle(device: torch.device | None, dtype: torch.dtype | None, sampler: str | None) -> str | None:
        """Return why they cannot run on such tokens, in words that follow "because". None stands for anything."""

    @staticmethod
    def load() -> None:
        """Register their operators as `torch.ops.svit_hf_NAME`."""


@cache
def resolve(kernels: str, device: torch.device, dtype: torch.dtype, sampler: str | None = None) -> str | None:
    """Find the kernels for some tokens, and make them ready; the choice of `auto` is said once.

    Args:
        kernels: "auto", or one of `KERNELS`.
        device: Of the tokens.
        dtype: Of the tokens.
        sampler: The super-token sampler, where one is used.

    Returns:
        One of `KERNELS`, whose operators are registered by then, or None for PyTorch's own operators.

    Raises:
        ValueError: If `kernels` is no such name, or asks for kernels that cannot run; the message says why.
    """
    name = _choose(device, dtype, sampler) if kernels == "auto" else kernels
    require(name, device, dtype, sampler)
    if name is not None:
        _module(name).load()
    return name


def require(
    name: str | None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    sampler: str | None = None,
) -> None:
    """Refuse kernels that cannot run; what is left out can be anything.

    Raises:
        ValueError: As in `resolve`.
    """
    if name is None or name == "auto":
        return
    if name not in KERNELS:
        raise ValueError(f"`kernels` is {name!r}; allowed are None, 'auto', {', '.join(map(repr, KERNELS))}.")
    obstacle = _find_obstacle(name, device, dtype, sampler)
    if obstacle is not None:
        raise ValueError(
            f"`kernels` is {name!r}, which cannot be used because {obstacle}; None and 'auto' always can."
        )


def _choose(device: torch.device, dtype: torch.dtype, sampler: str | None) -> str | None:
    for name in KERNELS:
        if device.type not in _module(name).AUTO_DEVICES:
            continue
        obstacle = _find_obstacle(name, device, dtype, sampler)
        if obstacle is None:
            _say_once(logging.INFO, f"{name} kernels run the layers of SViT on {device} in {dtype}.")
            return name
        _say_once(
            logging.WARNING,
            f"PyTorch's own operators run the layers of SViT on {device} in {dtype}, and not the faster {name} "
            f"kernels, because {obstacle}.",
        )
    return None


# operators with a sampler and without one are asked for apart, and mostly get the same answer
@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def _find_obstacle(
    name: str, device: torch.device | None, dtype: torch.dtype | None, sampler: str | None
) -> str | None:
    if os.environ.get(KILL_SWITCH) == "1":
        return f"the environment variable {KILL_SWITCH} is 1"
    return _module(name).find_obstacle(device, dtype, sampler)


def _module(name: str) -> Kernels:
    return import_module(f"svit_hf.kernels.{name}")  # type: ignore[return-value]
