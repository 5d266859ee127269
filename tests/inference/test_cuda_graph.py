# SPDX-License-Identifier: Apache-2.0
"""A captured model gives what the model gives, for images that fit."""

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.errors import SViTError
from svit_hf.inference import capture, fold_for_inference
from svit_hf.inference.cuda_graph import replayer


def test_images_are_copied_before_the_graph_runs():
    static, outputs = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    call = replayer(lambda: outputs.copy_(static.sum((1, 2, 3))), static, outputs)
    for images in (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)):
        assert call(images) is outputs
        torch.testing.assert_close(outputs, images.sum((1, 2, 3)))
    before = outputs.clone()
    for images in (torch.randn(1, 3, 4, 4), torch.randn(2, 3, 4, 4).half()):
        with pytest.raises(SViTError, match=r"captured were torch\.float32, shape \(2, 3, 4, 4\)"):
            call(images)
    assert torch.equal(outputs, before)


def test_other_devices_are_refused():
    model = SViTForImageClassification(tiny_config()).eval()
    with pytest.raises(SViTError, match="`example` is on 'cpu'; CUDA graphs need it, and `model`, on 'cuda'"):
        capture(model, torch.randn(1, 3, 64, 64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
def test_captured_model_gives_what_the_model_gives():
    torch.manual_seed(0)
    model = fold_for_inference(SViTForImageClassification(tiny_config())).cuda()
    captured = capture(model, torch.randn(2, 3, 64, 64, device="cuda"))
    with torch.no_grad():
        for _ in range(2):
            images = torch.randn(2, 3, 64, 64, device="cuda")
            torch.testing.assert_close(captured(images).logits, model(images).logits)
