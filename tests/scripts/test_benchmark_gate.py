# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from scripts.benchmark.contestants import GRADIENTS_TOLERANCE, RESULTS_TOLERANCE, GateError, check_outputs


EXPECTED = {"logits": torch.tensor([3.0, 4.0]), "gradients": torch.tensor([1.0, 0.0])}


def test_right_results_pass_with_their_error():
    outputs = {"logits": torch.tensor([3.0, 4.0]), "gradients": torch.tensor([1.0001, 0.0])}
    assert check_outputs("ours", "fp32", outputs, EXPECTED) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("output", "dtype", "tolerance"),
    [
        *(("logits", dtype, tolerance) for dtype, tolerance in RESULTS_TOLERANCE.items()),
        *(("gradients", dtype, tolerance) for dtype, tolerance in GRADIENTS_TOLERANCE.items()),
    ],
)
def test_error_above_the_tolerance_is_red(output, dtype, tolerance):
    # there are no gradients in 8 bits
    expected = {name: value for name, value in EXPECTED.items() if name == output}
    for factor, is_red in ((0.9, False), (1.1, True)):
        outputs = EXPECTED | {output: EXPECTED[output] * (1 + factor * tolerance)}
        if is_red:
            with pytest.raises(GateError, match=rf"ours: {output} differ .* No times are shown"):
                check_outputs("ours", dtype, outputs, expected)
        else:
            check_outputs("ours", dtype, outputs, expected)


def test_no_number_is_red():
    with pytest.raises(GateError, match="nan"):
        check_outputs("ours", "fp32", EXPECTED | {"logits": torch.tensor([torch.nan, 4.0])}, EXPECTED)


def test_other_shape_is_red():
    with pytest.raises(GateError, match=r"\(1,\), not \(2,\)"):
        check_outputs("ours", "fp32", EXPECTED | {"logits": torch.tensor([5.0])}, EXPECTED)
