# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can do something about.

The command line prints their message and no traceback. `model/`, which ships to the Hub without this file, does not
use them.
"""


class SViTError(Exception):
    """Report what a user gave, why it cannot be used, and what can be done about it.

    `exit_code` is the exit status of a command that ends so.
    """

    exit_code = 2


class ConversionError(SViTError, ValueError):
    """Report why a checkpoint was not converted."""


class PushError(SViTError):
    """Report that a push to the Hub failed: what is on the Hub now, and how to try again."""

    exit_code = 5


class DataError(SViTError):
    """Report images or labels that cannot be used, found while they were read."""

    exit_code = 3


class EvaluationError(SViTError, ValueError):
    """Report why images cannot be counted, or were not counted exactly."""

    exit_code = 3


class DivergenceError(SViTError):
    """Report that too many updates in a row had a loss or gradient that was not finite."""

    exit_code = 4


class TrainingInterruptedError(SViTError):
    """Report that training was told to stop, and has saved everything that it needs to go on."""

    # what a process that SIGTERM ends has: 128 + 15
    exit_code = 143
