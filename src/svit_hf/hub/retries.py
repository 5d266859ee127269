# SPDX-License-Identifier: Apache-2.0
"""Requests to the Hub that are made again where that can help."""

import time
from collections.abc import Callable
from typing import TypeVar

# HTTPError is that of httpx; since huggingface_hub 2, of httpx2
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]


# before each further attempt; huggingface_hub itself makes some requests again, too
WAIT_SECONDS = (1, 2, 4, 8, 16)
# a server that asks for more patience is not waited for
MOST_SECONDS = 120
TRANSIENT_STATUSES = (408, 429)
HINTS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token has to have the right to write there: https://huggingface.co/settings/tokens.",
}

# what huggingface_hub raises when a request fails, or an upload that it makes of several
HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)

Result = TypeVar("Result")


def retry(request: Callable[[], Result], recover: Callable[[], Result | None] = lambda: None) -> Result:
    """Make a request again, after longer and longer waits, while it fails for reasons that may pass.

    Args:
        request: The request.
        recover: Asked after every failure whether the request was successful all the same, and only its answer got
            lost: returns the result then.

    Raises:
        HTTPError, OSError, RuntimeError, ValueError: The last failure.
    """
    for wait in (*WAIT_SECONDS, None):
        try:
            return request()
        except HUB_ERRORS as error:
            if (result := recover()) is not None:
                return result
            seconds = _seconds_asked_for(error)
            if wait is None or not is_transient(error) or seconds > MOST_SECONDS:
                raise
            time.sleep(max(wait, seconds))
    raise AssertionError("the last attempt returns or raises")


def is_transient(error: BaseException) -> bool:
    """Say whether a failure may pass: a timeout, too many requests, trouble on the server or with the connection."""
    error = _of_request(error)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in TRANSIENT_STATUSES or status >= 500
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def reason(error: BaseException) -> str:
    """Return in a line why something failed, and what can be done about it."""
    error = _of_request(error)
    if not isinstance(error, HfHubHTTPError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    response = error.response
    said = f": {' '.join(error.server_message.split())}" if error.server_message else ""
    request = f"{response.request.method} {response.request.url.path}"
    return f"{request} was answered with {response.status_code}{said}. {HINTS.get(response.status_code, '')}".rstrip()


def _of_request(error: BaseException) -> BaseException:
    """Return the error of the request that an error is due to, if there is one: uploads wrap theirs."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
        cause = cause.__cause__
    return cause or error


def _seconds_asked_for(error: BaseException) -> float:
    error = _of_request(error)
    seconds = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    # the other form of this header, a date, is not used by the Hub
    return float(seconds) if seconds.isdecimal() else 0.0
