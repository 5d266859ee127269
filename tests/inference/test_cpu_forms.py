# SPDX-License-Identifier: Apache-2.0
"""On a CPU a folded model packs weights, joins GELU to the convolution and attends in bfloat16 in its own way."""

import copy
import pickle

import pytest
import torch
from tiny import tiny_config
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

from svit_hf import SViTForImageClassification
from svit_hf.inference import cpu_forms, fold_for_inference
from svit_hf.inference.cpu_forms import FusedConvFFN, PackedConvolution, cpu_attention_forward
from svit_hf.inference.folding import fold_weights


pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="this torch has no convolution with packed weights"
)
FUSED = "mkldnn::_convolution_pointwise"

needs_bfloat16 = pytest.mark.skipif(
    not cpu_forms._has_fast_convolutions(torch.bfloat16), reason="this CPU only emulates bfloat16"
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SViTForImageClassification(tiny_config())


@pytest.fixture
def folded(model):
    return fold_for_inference(model)


def operators_of(work):
    with profile() as profiled, torch.no_grad():
        work()
    return {event.key: event.count for event in profiled.key_averages()}


def packed_convolution(bias=True, **geometry):
    convolution = nn.Conv2d(6, **({"out_channels": 10, "kernel_size": 1} | geometry), bias=bias).requires_grad_(False)
    convolution.__class__ = PackedConvolution
    return convolution


class TestPackedConvolution:
    @pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(
        "geometry",
        [
            {},
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 6},
        ],
        ids=["1x1", "halving", "depthwise"],
    )
    def test_computes_the_convolution_at_any_size(self, bias, memory_format, geometry):
        convolution = packed_convolution(bias, **geometry)
        for shape in [(2, 6, 5, 7), (1, 6, 1, 1), (9, 6, 16, 3)]:
            images = torch.randn(shape).contiguous(memory_format=memory_format)
            expected = convolution._conv_forward(images, convolution.weight, convolution.bias)
            torch.testing.assert_close(convolution(images), expected)
            torch.testing.assert_close(convolution.convolve(images, "gelu"), F.gelu(expected))
        packed = convolution.packed
        assert operators_of(lambda: convolution(images))[FUSED] == 1
        assert convolution.packed is packed
        # in the order for other images it is slow
        convolution(torch.randn(2, 6, 5, 7))
        assert convolution.packed is not packed

    @pytest.mark.parametrize(
        "change",
        [
            lambda convolution: convolution.weight.mul_(2),
            lambda convolution: convolution.load_state_dict({"weight": torch.ones(10, 6, 1, 1)}, strict=False),
            lambda convolution: convolution.bfloat16().float(),
            lambda convolution: convolution.register_parameter("weight", nn.Parameter(torch.randn(10, 6, 1, 1))),
        ],
        ids=["in place", "loaded", "rounded", "replaced"],
    )
    def test_sees_other_weights(self, change):
        convolution, images = packed_convolution(), torch.randn(1, 6, 4, 4)
        with torch.no_grad():
            before = convolution(images)
            change(convolution)
            expected = F.conv2d(images, convolution.weight, convolution.bias)
            assert not torch.equal(before, expected)
            torch.testing.assert_close(convolution(images), expected)

    def test_copies_pack_anew(self):
        convolution, images = packed_convolution(), torch.randn(1, 6, 4, 4)
        expected = convolution(images)
        for twin in (copy.deepcopy(convolution), pickle.loads(pickle.dumps(convolution))):
            assert twin.packed is None
            torch.testing.assert_close(twin(images), expected, rtol=0, atol=0)
        assert convolution.state_dict().keys() == {"weight", "bias"}
        # the weights may come back to the same address with other values
        assert convolution.float().packed is None

    def test_is_the_ordinary_one_where_packing_is_not_possible(self):
        convolution = packed_convolution()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert convolution(torch.randn(1, 6, 4, 4)).dtype == torch.bfloat16
        assert convolution(torch.randn(0, 6, 4, 4)).shape == (0, 10, 4, 4)
        assert convolution.double()(torch.randn(1, 6, 4, 4).double()).dtype == torch.float64
        assert convolution.float().to("meta")(torch.randn(1, 6, 4, 4, device="meta")).is_meta
        assert convolution.packed is None


class TestModel:
    def test_every_convolution_is_packed_and_gelu_is_in_the_first_of_a_feed_forward(self, model, folded):
        images = torch.randn(2, 3, 64, 64)
        counts = operators_of(lambda: folded(images))
        assert counts[FUSED] == sum(isinstance(module, nn.Conv2d) for module in folded.modules())
        assert "aten::convolution" not in counts
        # those of the stem are followed by a norm that does not fold
        assert counts["aten::gelu"] == 4
        with torch.no_grad():
            expected = fold_weights(model)(images).logits
            torch.testing.assert_close(folded(images).logits, expected, rtol=1e-4, atol=1e-5)

    def test_hooks_see_every_step(self, folded):
        mlp = next(module for module in folded.modules() if isinstance(module, FusedConvFFN))
        for watched in (mlp, mlp.fc1, mlp.activation):
            seen = []
            handle = watched.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            folded(torch.randn(1, 3, 64, 64))
            handle.remove()
            assert len(seen) == 1
            watched.forward = lambda images, seen=seen, watched=watched: (
                seen.append(images) or type(watched).forward(watched, images)
            )
            folded(torch.randn(1, 3, 64, 64))
            del watched.forward
            assert len(seen) == 2

    def test_compilers_see_the_code_of_the_model(self, folded, compile_and_compare):
        code = compile_and_compare(folded)
        assert "mkldnn" not in code
        assert "scaled_dot_product_attention" in code


class TestAttention:
    @staticmethod
    def states(batch_size, num_heads, length, dtype=torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        packed = torch.randn(batch_size, length, num_heads, 3, 16, generator=generator).to(dtype)
        return packed.permute(3, 0, 2, 1, 4).unbind(0)

    @needs_bfloat16
    @pytest.mark.parametrize("weights_at_once", [2**20, 3 * 80**2, 1], ids=["all", "some", "one"])
    def test_in_bfloat16_is_that_of_float32_up_to_rounding(self, monkeypatch, weights_at_once):
        monkeypatch.setattr(cpu_forms, "_WEIGHTS_AT_ONCE", weights_at_once)
        query, key, value = self.states(2, 4, 80)
        expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=0.3).transpose(1, 2)
        counts = operators_of(lambda: cpu_attention_forward(None, query, key, value, None, scaling=0.3))
        assert "aten::scaled_dot_product_attention" not in counts
        attended, weights = cpu_attention_forward(None, query, key, value, None, scaling=0.3)
        assert weights is None
        assert attended.is_contiguous()
        # 0.0044 was seen
        assert ((attended - expected).norm() / expected.norm()).item() < 0.01

    @needs_bfloat16
    def test_of_few_weights_or_in_float32_is_sdpa(self):
        module = nn.Module()
        module.is_causal = False
        for states in (self.states(1, 2, 80), self.states(2, 4, 80, torch.float32)):
            counts = operators_of(lambda states=states: cpu_attention_forward(module, *states, None, scaling=0.3))
            assert counts["aten::scaled_dot_product_attention"] == 1

    def test_is_chosen_where_sdpa_was(self, model, folded):
        assert folded.config._attn_implementation == cpu_forms.CPU_ATTENTION
        assert model.config._attn_implementation == "sdpa"
