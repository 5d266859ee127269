# SPDX-License-Identifier: Apache-2.0
import pytest

from svit_hf.data.options import AugmentationOptions, DataOptions, MixingOptions
from svit_hf.errors import SViTError


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (DataOptions, {"format": "tfrecord"}),
        (DataOptions, {"num_workers": -1}),
        (DataOptions, {"shuffle_block": 0}),
        (DataOptions, {"max_bad_share": 1.5}),
        (AugmentationOptions, {"scale": (0.5, 0.1)}),
        (AugmentationOptions, {"ratio": (0, 1)}),
        (AugmentationOptions, {"interpolation": "lanczos"}),
        (AugmentationOptions, {"horizontal_flip": 2}),
        (AugmentationOptions, {"randaugment": "rand-9"}),
        (AugmentationOptions, {"color_jitter": -1}),
        (AugmentationOptions, {"random_erasing": float("nan")}),
        (AugmentationOptions, {"num_views": 0}),
        (MixingOptions, {"mixup_alpha": -0.1}),
        (MixingOptions, {"switch_probability": 1.1}),
    ],
    ids=str,
)
def test_impossible_value_is_named(options, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(SViTError, match=rf"`{name}` is .*it has to be") as caught:
        options(**arguments)
    assert str(value) in str(caught.value)
