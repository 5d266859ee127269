# SPDX-License-Identifier: Apache-2.0
"""Credentials in addresses and other text: found before anything is published, hidden before anything is written."""

import re


HIDDEN = "***"

# access tokens of the Hub: of users and organisations, of OAuth applications, and of jobs and spaces
_TOKEN = re.compile(r"\b(?:hf_(?:oauth|jwt)_[\w.~+/=-]{20,}|(?:hf|api_org)_[A-Za-z0-9]{20,})")
# what stands before the host: a user and a password, or a token in the place of either
_USER = re.compile(r"(?<=://)[^\s/?#@'\"]+(?=@)")
_PASSWORD = re.compile(r"(?<=://)[^\s/?#@'\":]*:[^\s/?#@'\"]+(?=@)")
# signatures of S3, Google Cloud and Azure, and what else is called so in a query
_QUERY = re.compile(
    r"(?<=[?&;])([\w.-]*(?:signature|token|secret|passw(?:or)?d|credential|authorization|access_?key(?:_?id)?)[\w.-]*"
    # not what is hidden already, be it in Markdown
    r"|sig|key|api[_-]?key)=(?!\\?\*)[^&\s'\"#,]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Return an address, or any text with addresses in it, without passwords, tokens and signatures.

    Example:
        >>> without_credentials("s3://key:secret@bucket/cats.parquet, https://host/a?X-Amz-Signature=12ab&part=2")
        's3://***@bucket/cats.parquet, https://host/a?X-Amz-Signature=***&part=2'
    """
    text = _USER.sub(HIDDEN, text)
    text = _QUERY.sub(lambda match: f"{match[1]}={HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def find_credentials(text: str) -> int | None:
    """Return where the first password, token or signature begins in a text; `None` if there is none."""
    found = [match.start() for pattern in (_TOKEN, _PASSWORD, _QUERY) if (match := pattern.search(text))]
    return min(found, default=None)
