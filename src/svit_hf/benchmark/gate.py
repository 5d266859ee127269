# SPDX-License-Identifier: Apache-2.0
"""The correctness gate: nobody's time counts before its results are right."""

from collections.abc import Mapping

import torch

from svit_hf.errors import SViTError


# largest relative error in norm against the eager float32 model with the same weights and images, by dtype; int8 is
# an approximation whose worth only pictures tell (0.22 was seen, SViT-S with random weights in ONNX Runtime), and
# arithmetic that is wrong is off by more
RESULTS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.5}
GRADIENTS_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-1, "fp16": 5e-2}


class GateError(SViTError):
    """Report contestants whose results are wrong; no time of the run is shown then."""

    exit_code = 1


def check_outputs(
    name: str, dtype: str, outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> float:
    """Compare what a contestant computes with the reference.

    Args:
        name: Of the contestant.
        dtype: That it computes in, a key of the tolerances; int8 has no gradients.
        outputs: What it computed, by name: `gradients` of a training step, and its results.
        expected: What the reference computed.

    Returns:
        The largest relative error in norm.

    Raises:
        GateError: If an error is larger than its tolerance, or no number at all.
    """
    errors = {}
    for output, reference in expected.items():
        found = outputs[output]
        if found.shape != reference.shape:
            raise GateError(
                f"{name}: {output} have the shape {tuple(found.shape)}, expected is {tuple(reference.shape)}. "
                "No times are shown."
            )
        errors[output] = float((found - reference).norm() / reference.norm())
        tolerance = (GRADIENTS_TOLERANCE if output == "gradients" else RESULTS_TOLERANCE)[dtype]
        # written so that NaN is red too
        if not errors[output] <= tolerance:
            raise GateError(
                f"{name}: {output} differ from those of the eager float32 model by {errors[output]:.2e} (relative, in "
                f"norm); allowed is {tolerance:.0e} in {dtype}. No times are shown."
            )
    return max(errors.values())
