# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest

from svit_hf.errors import EvaluationError, SViTError
from svit_hf.urls import find_credentials, without_credentials


USER_TOKEN = "hf_" + "aB3" * 11
HIDDEN = {
    f"http://user:{USER_TOKEN}@host/x.parquet": "http://***@host/x.parquet",
    f"http://{USER_TOKEN}@host/x.parquet": "http://***@host/x.parquet",
    "s3://key:sec/ret": "s3://key:sec/ret",
    "zip://*.jpg::https://user:word@host/a.zip": "zip://*.jpg::https://***@host/a.zip",
    "https://b.s3.amazonaws.com/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=12ab&n=1#f": (
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=***&X-Amz-Signature=***&n=1#f"
    ),
    "https://s.blob.core.windows.net/x?sv=2024&sig=a%2Bb": "https://s.blob.core.windows.net/x?sv=2024&sig=***",
    "https://host/x?AWSAccessKeyId=AK&Signature=abc&Expires=1": (
        "https://host/x?AWSAccessKeyId=***&Signature=***&Expires=1"
    ),
    "run with hf_oauth_eyJhbGciOi.eyJzdWIiOiI2.c2ln-_x": "run with ***",
    "run with hf_jwt_eyJhbGciOi.eyJzdWIiOiI2.c2ln-_x": "run with ***",
    "api_org_" + "aB3" * 11: "***",
}
HARMLESS = [
    "hf://datasets/pets/five@v1/data/*.parquet",
    "https://host/x?design=1&keys=2&n=3",
    "from huggingface_hub import hf_hub_download_with_a_long_name",
    "someone@example.org",
    "/data/pets@home/train",
]


@pytest.mark.parametrize("text", HIDDEN, ids=range(len(HIDDEN)))
def test_credentials_are_hidden(text):
    hidden = without_credentials(text)
    assert hidden == HIDDEN[text]
    assert without_credentials(hidden) == hidden
    assert find_credentials(hidden) is None
    assert (find_credentials(text) is None) == (hidden == text)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays(text):
    assert without_credentials(text) == text
    assert find_credentials(text) is None


def test_errors_repeat_no_credentials():
    for kind in (SViTError, EvaluationError):
        error = kind("`path` is 'https://user:word@host/x', which is not there")
        # as errors come out of a worker process
        for one in (error, pickle.loads(pickle.dumps(error))):
            assert str(one) == "`path` is 'https://***@host/x', which is not there"
