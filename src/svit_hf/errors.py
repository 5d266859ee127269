# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can do something about.

The command line prints their message and no traceback. `model/`, which ships to the Hub without this file, does not
use them.
"""

import difflib
from collections.abc import Iterable

from svit_hf.urls import without_credentials


class SViTError(Exception):
    """Error whose message says what a user gave, why it cannot be used, and what can be done about it.

    Credentials in addresses are hidden from the message. `exit_code` is the exit status of a command that ends so.
    """

    exit_code = 2

    def __init__(self, message: str = ""):
        super().__init__(without_credentials(message))


class ConversionError(SViTError, ValueError):
    """Error about a checkpoint that was not converted."""


class PushError(SViTError):
    """Error about a push to the Hub that failed: what is on the Hub now, and how to try again."""

    exit_code = 5


class DataError(SViTError):
    """Error about images or labels that cannot be used, found while they were read."""

    exit_code = 3


class EvaluationError(SViTError, ValueError):
    """Error about images that cannot be counted, or were not counted exactly."""

    exit_code = 3


class DivergenceError(SViTError):
    """Error after too many updates in a row whose loss or gradient was not finite."""

    exit_code = 4


class TrainingInterruptedError(SViTError):
    """End of a training that was told to stop, and has saved everything that it needs to go on."""

    # what a process that SIGTERM ends has: 128 + 15
    exit_code = 143


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return names for a message, in their order: all of a few, the first of many and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """Return for a message what a mistyped name may have been: a sentence, and empty where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`? " if near else ""
