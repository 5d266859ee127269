# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a function of integers, for code that draws from torch's own generator, as torchvision's does."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


@contextmanager
def seeded_by(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers on the CPU follow from `numbers`, and put the generator back afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    digest = blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    # not torch.manual_seed: it also seeds accelerators, and takes a stack trace to remember that
    generator.manual_seed(int.from_bytes(digest, "little"))
    try:
        yield
    finally:
        generator.set_state(state)
