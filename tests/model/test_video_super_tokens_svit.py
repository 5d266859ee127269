# SPDX-License-Identifier: Apache-2.0
"""Super tokens of clips against the oracle, and what a clip that stands still has in common with its frame."""

import oracle
import pytest
import torch

from svit_hf.model.super_tokens_svit import super_token_attention
from svit_hf.model.video_super_tokens_svit import sample_video_super_tokens, video_super_token_attention


# worst case measured over the comparisons of this file, float32 against the float64 oracle: 3.4e-7
FLOAT32_TOLERANCE = 1e-5

# clips, frames, height, width, cell, iterations
CLIPS = [
    pytest.param(2, 4, 4, 4, (2, 2, 2), 1, id="whole-cells"),
    pytest.param(1, 5, 5, 7, (2, 3, 2), 2, id="last-cells-not-whole-rounds2"),
    pytest.param(1, 3, 4, 4, (4, 4, 4), 3, id="one-cell-rounds3"),
    pytest.param(2, 3, 4, 6, (1, 2, 2), 1, id="cells-of-one-frame"),
]


def mix(super_tokens):
    return super_tokens.tanh() + super_tokens.mean(dim=(2, 3), keepdim=True) ** 2


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("clips", "num_frames", "height", "width", "cell_size", "num_iterations"), CLIPS)
def test_matches_oracle_forward_and_backward(clips, num_frames, height, width, cell_size, num_iterations):
    tokens = (2 * torch.randn(clips * num_frames, 5, height, width)).requires_grad_()
    output, sampled = video_super_token_attention(tokens, mix, num_frames, cell_size, num_iterations)
    reference = tokens.detach().double().requires_grad_()
    expected = oracle.video_super_token_attention(reference, mix, num_frames, cell_size, num_iterations)
    torch.testing.assert_close(sampled.association.sum(-1), torch.ones(sampled.association.shape[:-1]))
    assert not sampled.association.requires_grad
    assert relative_error(output, expected) < FLOAT32_TOLERANCE
    weight = torch.randn_like(output)
    (gradient,) = torch.autograd.grad((output * weight).sum(), tokens)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), reference)
    assert relative_error(gradient, expected_gradient) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("frames_in_cell", [1, 2, 4])
@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_still_clip_has_the_super_tokens_of_its_frame(num_frames, frames_in_cell, num_iterations):
    frames = 2 * torch.randn(2, 5, 8, 10, dtype=torch.float64)
    expected, _ = super_token_attention(frames, mix, (4, 4), num_iterations)
    clips = frames.repeat_interleave(num_frames, dim=0)
    output, _ = video_super_token_attention(clips, mix, num_frames, (frames_in_cell, 4, 4), num_iterations)
    torch.testing.assert_close(output, expected.repeat_interleave(num_frames, dim=0))


def test_clips_do_not_see_each_other_and_frames_do():
    tokens = torch.randn(6, 5, 8, 8)
    output, _ = video_super_token_attention(tokens, mix, 3, (2, 4, 4))
    changed = tokens.clone()
    changed[5] += 1
    others, _ = video_super_token_attention(changed, mix, 3, (2, 4, 4))
    torch.testing.assert_close(others[:3], output[:3], rtol=0, atol=0)
    assert relative_error(others[3], output[3]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_stays_near_float32(dtype):
    tokens = torch.randn(4, 32, 16, 16).to(dtype)
    output, sampled = video_super_token_attention(tokens, mix, 4, (2, 8, 8), 2)
    expected, _ = video_super_token_attention(tokens.float(), mix, 4, (2, 8, 8), 2)
    assert output.dtype == sampled.super_tokens.dtype == dtype
    assert sampled.association.dtype == torch.float32
    assert relative_error(output, expected) < 8 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        association = sample_video_super_tokens(tokens.float(), 4, (2, 8, 8)).association
    expected = sample_video_super_tokens(tokens.float(), 4, (2, 8, 8)).association
    torch.testing.assert_close(association, expected, rtol=0, atol=0)


def test_no_iteration():
    with pytest.raises(ValueError, match=r"`num_iterations` is 0"):
        sample_video_super_tokens(torch.zeros(2, 1, 8, 8), 2, (2, 4, 4), 0)


def test_strides_of_one_clip_say_that_channels_are_last():
    # any stride of the only clip would do, but convolutions and attention look at it to choose how they compute
    strides = []
    video_super_token_attention(
        torch.randn(4, 5, 8, 12), lambda each: strides.append(each.stride()) or each, 4, (2, 4, 4)
    )
    assert strides == [(4 * 3 * 5, 1, 3 * 5, 5)]
