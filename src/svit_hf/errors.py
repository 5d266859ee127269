# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can do something about.

The command line prints their message and no traceback. `model/`, which ships to the Hub without this file, does not
use them.
"""


class SViTError(Exception):
    """Report what a user gave, why it cannot be used, and what can be done about it."""


class ConversionError(SViTError, ValueError):
    """Report why a checkpoint was not converted."""


class EvaluationError(SViTError, ValueError):
    """Report why images cannot be counted, or were not counted exactly."""

    exit_code = 3
