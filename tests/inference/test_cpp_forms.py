# SPDX-License-Identifier: Apache-2.0
"""A model folded with `cpp=True` computes its layers by operators in C++: the same numbers, in fewer steps."""

import copy
import pickle
import platform
import shutil
import subprocess

import pytest
import torch
from tiny import tiny_config, two_stage_config
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

from svit_hf import SViTForImageClassification
from svit_hf.errors import SViTError
from svit_hf.inference import cpp, cpu_forms, fold_for_inference
from svit_hf.inference.cpp_forms import CppConvFFN, CppLayer, CppSelfAttention
from svit_hf.kernels import use_kernels
from svit_hf.model.super_tokens_svit import (
    sample_super_tokens,
    sample_super_tokens_masked,
    upsample_tokens,
)


pytestmark = pytest.mark.skipif(
    platform.system() != "Linux"
    or torch.backends.cpu.get_cpu_capability() not in cpp._FLAGS_OF_PROCESSORS
    or shutil.which("c++") is None,
    reason="the operators need Linux, an x86-64 processor with AVX2 and a C++ compiler",
)

DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not cpu_forms._has_fast_convolutions(torch.bfloat16), reason="this CPU only emulates bfloat16"
        ),
    ),
]
# relative to float64: worst cases over the comparisons of this file 6.1e-7 and 5.7e-3
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module", autouse=True)
def operators():
    cpp.build()
    return torch.ops.svit_hf_cpp


@pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape, dtype=torch.float32, scale=1.0):
    tensor = (torch.randn(shape) * scale).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def assert_near(actual, expected, dtype):
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < TOLERANCE[dtype], error


# images, channels, rows, columns, channels of the wide map
FEED_FORWARDS = [
    pytest.param((2, 16, 7, 7, 64), id="one-tile"),
    pytest.param((1, 64, 40, 56, 256), id="three-tiles"),
    pytest.param((1, 32, 13, 5, 128), id="tiles-for-threads"),
    pytest.param((3, 10, 1, 1, 40), id="partial-registers"),
    pytest.param((1, 18, 9, 1, 200), id="one-column-and-a-partial-chunk"),
    pytest.param((1, 16, 1, 130, 16), id="one-row"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestOperators:
    @pytest.mark.parametrize("shape", FEED_FORWARDS)
    @pytest.mark.parametrize("has_residual", [True, False])
    def test_feed_forward(self, operators, threads, dtype, shape, has_residual):
        batch_size, channels, height, width, wide = shape
        tokens, residual = (random(batch_size, channels, height, width, dtype=dtype) for _ in range(2))
        weights = [
            random(wide, channels, dtype=dtype, scale=channels**-0.5),
            random(wide, dtype=dtype),
            random(wide, 9, dtype=dtype, scale=0.3),
            random(wide, dtype=dtype),
            random(channels, wide, dtype=dtype, scale=wide**-0.5),
            random(channels, dtype=dtype),
        ]
        widen, widen_bias, taps, taps_bias, narrow, narrow_bias = (each.double() for each in weights)
        activated = F.gelu(F.conv2d(tokens.double(), widen[..., None, None], widen_bias))
        mixed = F.conv2d(activated, taps.view(wide, 1, 3, 3), taps_bias, padding=1, groups=wide)
        expected = F.conv2d(mixed, narrow[..., None, None], narrow_bias)
        if has_residual:
            expected = expected + residual.double()
        packed = operators.pack_feed_forward(*weights, dtype)
        actual = operators.feed_forward(tokens, packed, residual if has_residual else None)
        assert_near(actual, expected, dtype)
        # a token without a neighbour and one in a tile of its own are seen in no norm of all
        assert (actual.double() - expected).abs().max() < 20 * TOLERANCE[dtype] * expected.std()
        assert torch.equal(
            operators.feed_forward(tokens.contiguous(), packed, residual if has_residual else None), actual
        )

    @pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 48, 17, 1), (1, 16, 1, 9)])
    def test_depthwise(self, operators, threads, dtype, shape):
        tokens, taps, bias = random(*shape, dtype=dtype), random(9, shape[1]), random(shape[1])
        weight = taps.t().reshape(-1, 1, 3, 3).double()
        expected = F.conv2d(tokens.double(), weight, bias.double(), padding=1, groups=shape[1])
        assert_near(operators.depthwise(tokens, taps, bias), expected, dtype)

    @pytest.mark.parametrize("shape", [(2, 48, 7, 7), (1, 32, 13, 6), (2, 16, 1, 1), (1, 96, 5, 33)])
    @pytest.mark.parametrize("has_surroundings", [True, False], ids=["norm-and-residual", "alone"])
    def test_attention(self, operators, threads, dtype, shape, has_surroundings):
        channels, num_heads = shape[1], shape[1] // 16
        tokens, residual = (random(*shape, dtype=dtype) for _ in range(2))
        weights = [
            random(3 * channels, channels, dtype=dtype, scale=2 * channels**-0.5),
            random(3 * channels, dtype=dtype),
            random(channels, channels, dtype=dtype, scale=channels**-0.5),
            random(channels, dtype=dtype),
        ]
        norm = random(channels, dtype=dtype), random(channels, dtype=dtype)
        qkv, qkv_bias, projection, projection_bias = (each.double() for each in weights)
        rows = tokens.double().flatten(2).transpose(1, 2)
        if has_surroundings:
            rows = F.layer_norm(rows, (channels,), *[each.double() for each in norm], 1e-3)
        states = F.linear(rows, qkv, qkv_bias).unflatten(2, (num_heads, 3, 16)).permute(3, 0, 2, 1, 4)
        attended = F.scaled_dot_product_attention(*states, scale=0.25).transpose(1, 2).flatten(2)
        expected = F.linear(attended, projection, projection_bias).transpose(1, 2).unflatten(2, shape[2:])
        packed = operators.pack_attention(*weights, num_heads, 0.25, dtype)
        surroundings = (*norm, 1e-3, residual) if has_surroundings else (None, None, 0.0, None)
        actual = operators.attention(tokens, packed, *surroundings)
        assert_near(actual, expected + residual.double() if has_surroundings else expected, dtype)

    @pytest.mark.parametrize(
        ("shape", "cell_size"),
        [((2, 16, 8, 12), (4, 4)), ((1, 32, 6, 6), (2, 3)), ((2, 16, 4, 5), (4, 5)), ((1, 16, 3, 9), (1, 3))],
        ids=["squares", "rectangles", "one-cell", "one-row-of-tokens"],
    )
    @pytest.mark.parametrize("masks", [False, True])
    def test_sampling_and_upsampling(self, operators, threads, dtype, shape, cell_size, masks):
        tokens, residual = random(*shape, dtype=dtype, scale=3.0) + 1, random(*shape, dtype=dtype)
        weight, bias = random(shape[1], dtype=dtype) + 1, random(shape[1], dtype=dtype)
        sampler = sample_super_tokens_masked if masks else sample_super_tokens
        rows = tokens.double().permute(0, 2, 3, 1)
        normalized = F.layer_norm(rows, (shape[1],), weight.double(), bias.double(), 1e-3).permute(0, 3, 1, 2)
        expected = sampler(normalized, cell_size)
        super_tokens, association = operators.sample_super_tokens(tokens, weight, bias, 1e-3, *cell_size, masks)
        assert_near(super_tokens, expected.super_tokens, dtype)
        assert_near(association, expected.association, torch.float32)
        spread = upsample_tokens(super_tokens.double(), association.double(), cell_size, shape[2:])
        assert_near(operators.upsample_tokens(super_tokens, association, *cell_size, None), spread, dtype)
        with_shortcut = operators.upsample_tokens(super_tokens, association, *cell_size, residual)
        assert_near(with_shortcut, spread + residual.double(), dtype)

    def test_gelu_and_normalize(self, operators, threads, dtype):
        # all of the range where GELU is neither zero nor the number itself, and beyond
        states = torch.linspace(-12, 12, 2 * 16 * 25 * 20).view(2, 25, 20, 16).permute(0, 3, 1, 2).to(dtype)
        mean, variance, weight, bias = random(16), random(16) ** 2, random(16), random(16)
        for statistics in ((mean, variance, weight, bias), (mean * 0, variance * 0 + 1, weight * 0 + 1, bias * 0)):
            expected = F.batch_norm(F.gelu(states.double()), *[each.double() for each in statistics], eps=1e-3)
            actual = states.clone(memory_format=torch.preserve_format)
            operators.gelu_and_normalize_(actual, *[each.to(dtype) for each in statistics], 1e-3)
            # rounding the statistics is not the operator's
            if dtype == torch.float32 or statistics[0].abs().max() == 0:
                assert_near(actual, expected, dtype)
                assert (actual.double() - expected).abs().max() < (3e-6 if dtype == torch.float32 else 0.04)

    def test_what_is_no_number_stays_none(self, operators, dtype):
        tokens = random(1, 16, 4, 4, dtype=dtype)
        tokens[0, 3, 1, 1] = torch.nan
        packed = operators.pack_feed_forward(
            *(random(*shape, dtype=dtype) for shape in [(64, 16), (64,), (64, 9), (64,), (16, 64), (16,)]), dtype
        )
        assert operators.feed_forward(tokens, packed, None)[0, :, :3, :3].isnan().all()
        packed = operators.pack_attention(
            *(random(*each, dtype=dtype) for each in [(48, 16), (48,), (16, 16), (16,)]), 1, 0.25, dtype
        )
        assert operators.attention(tokens, packed, None, None, 0.0, None).isnan().all()
        norm = torch.ones(16, dtype=dtype), torch.zeros(16, dtype=dtype)
        super_tokens, association = operators.sample_super_tokens(tokens, *norm, 1e-6, 2, 2, False)
        assert association.isnan().any()
        assert super_tokens.isnan().any()
        operators.gelu_and_normalize_(tokens, norm[1], norm[0], norm[0], norm[1], 0.0)
        assert tokens.isnan().sum() == 1

    def test_no_image_is_no_result(self, operators, dtype):
        tokens = random(0, 16, 4, 4, dtype=dtype)
        packed = operators.pack_feed_forward(
            *(random(*shape, dtype=dtype) for shape in [(64, 16), (64,), (64, 9), (64,), (16, 64), (16,)]), dtype
        )
        assert operators.feed_forward(tokens, packed, tokens).shape == tokens.shape
        packed = operators.pack_attention(
            *(random(*each, dtype=dtype) for each in [(48, 16), (48,), (16, 16), (16,)]), 1, 0.25, dtype
        )
        assert operators.attention(tokens, packed, None, None, 0.0, None).shape == tokens.shape


def config(**kwargs):
    widths = {"hidden_sizes": [32, 32, 48, 64], "num_attention_heads": [2, 2, 3, 4]}
    return tiny_config(**(widths | kwargs))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SViTForImageClassification(config()).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def folded(model):
    return fold_for_inference(model, cpp=True)


def operators_of(work):
    with profile() as profiled, torch.no_grad():
        work()
    return {event.key.removeprefix("svit_hf_cpp::"): event.count for event in profiled.key_averages()}


def logits_of(model, images):
    with torch.no_grad():
        return model(images).logits


class TestModel:
    @pytest.mark.parametrize("size", [(64, 64), (64, 96)])
    def test_computes_what_the_model_does_by_the_operators_alone(self, model, folded, size):
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(logits_of(folded, images), logits_of(model, images), rtol=1e-4, atol=1e-5)
        counts = operators_of(lambda: folded(images))
        num_layers = sum(model.config.depths)
        expected = {"gelu_and_normalize_": 4, "depthwise": num_layers, "feed_forward": num_layers}
        expected |= {"attention": num_layers, "sample_super_tokens": 3, "upsample_tokens": 3}
        assert {name: counts.get(name) for name in expected} == expected
        # the weights were packed before
        others = ("aten::gelu", "aten::native_layer_norm", "aten::softmax", "aten::bmm", "pack_feed_forward")
        assert not counts.keys() & {*others, "pack_attention", "aten::scaled_dot_product_attention"}

    def test_of_bfloat16_is_as_near_as_without_the_operators(self):
        if not cpu_forms._has_fast_convolutions(torch.bfloat16):
            pytest.skip("this CPU only emulates bfloat16")
        errors = torch.zeros(2)
        for seed in range(8):
            torch.manual_seed(seed)
            model, images = SViTForImageClassification(config()).eval(), torch.randn(8, 3, 64, 64)
            expected = logits_of(model, images)
            for form in (False, True):
                actual = logits_of(fold_for_inference(model, cpp=form).to(torch.bfloat16), images.bfloat16())
                errors[int(form)] += (actual - expected).norm() / expected.norm()
        assert errors[1] < 1.2 * errors[0], errors

    @pytest.mark.parametrize(
        "images",
        [torch.randn(2, 3, 72, 64), torch.randn(1, 3, 64, 72), torch.randn(0, 3, 64, 64)],
        ids=["no-whole-rows-of-cells", "no-whole-columns-of-cells", "no-images"],
    )
    def test_any_images(self, model, folded, images):
        torch.testing.assert_close(logits_of(folded, images), logits_of(model, images), rtol=1e-4, atol=1e-5)

    def test_what_was_asked_for_is_there(self, model, folded):
        images = torch.randn(2, 3, 64, 64)
        wanted = {"output_hidden_states": True, "output_super_tokens": True, "output_associations": True}
        with torch.no_grad():
            expected, actual = model(images, **wanted), folded(images, **wanted)
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)

    def test_hooks_see_every_step(self, folded):
        layer = next(module for module in folded.modules() if isinstance(module, CppLayer))
        images = torch.randn(1, 3, 64, 64)
        expected = logits_of(folded, images)
        for name, watched in layer.named_modules():
            if isinstance(watched, (nn.Identity, nn.Dropout)) and name != "dropout":
                continue
            seen = []
            handle = watched.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            torch.testing.assert_close(logits_of(folded, images), expected, rtol=1e-4, atol=1e-5)
            handle.remove()
            assert len(seen) == (2 if name in ("dropout", "drop_path") else 1), name

    def test_sees_other_weights_and_copies_pack_anew(self, model, folded):
        images = torch.randn(1, 3, 64, 64)
        before = logits_of(folded, images)
        for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
            packs = [module for module in twin.modules() if isinstance(module, (CppConvFFN, CppSelfAttention))]
            assert all(module.packed is None for module in packs)
            assert torch.equal(logits_of(twin, images), before)
        with torch.no_grad():
            for other in (folded, model):
                for module in other.modules():
                    if isinstance(module, nn.Conv2d):
                        module.weight.mul_(0.9 if module.groups == 1 else 1.0)
        after = logits_of(folded, images)
        assert not torch.allclose(after, before, rtol=1e-3)

    @pytest.mark.parametrize("part", ["position_embedding.convolution", "mlp.fc2", "attention.self_attention.qkv"])
    def test_sees_a_weight_that_was_changed_in_place(self, folded, part):
        layer = next(module for module in folded.modules() if isinstance(module, CppLayer))
        images = torch.randn(1, 3, 64, 64)
        before = logits_of(folded, images)
        with torch.no_grad():
            layer.get_submodule(part).weight.mul_(1.5)
        after = logits_of(folded, images)
        assert not torch.allclose(after, before, rtol=1e-3)
        layer.get_submodule(part).register_forward_hook(lambda *arguments: None)
        torch.testing.assert_close(logits_of(folded, images), after, rtol=1e-4, atol=1e-5)

    def test_where_the_operators_cannot_run_it_is_the_model(self, model, folded):
        images = torch.randn(1, 3, 64, 64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            counts = operators_of(lambda: folded(images))
        assert "feed_forward" not in counts
        folded.set_attn_implementation("eager")
        assert "attention" not in operators_of(lambda: folded(images))
        torch.testing.assert_close(
            logits_of(folded.double(), images.double()), logits_of(model.double(), images.double())
        )

    def test_compilers_see_the_code_of_the_model(self, compile_and_compare):
        small = two_stage_config(hidden_sizes=[32, 48], num_attention_heads=[2, 3])
        folded = fold_for_inference(SViTForImageClassification(small).eval(), cpp=True)
        assert "svit_hf_cpp" not in compile_and_compare(folded, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "ablation",
        [
            {"super_token_sampler": "cosine"},
            {"super_token_sampler": "soft_masked"},
            {"num_sampling_iterations": [2, 2, 1, 1]},
            {"qkv_bias": False},
            {"hidden_act": "relu"},
            # less than a register
            {"hidden_sizes": [8, 12, 16, 24], "num_attention_heads": [1, 2, 2, 4]},
            {"feed_forward_kind": "plain"},
            {"use_position_embedding": False},
            {"stem_kind": "patches"},
            {"use_projection": False},
            {"attention_kinds": ["window", "pooled_keys", "global", "none"]},
            {"super_token_mixer": "none"},
        ],
        ids=lambda ablation: next(iter(ablation)),
    )
    def test_other_layers_compute_as_ever(self, ablation):
        other, images = SViTForImageClassification(config(**ablation)).eval(), torch.randn(1, 3, 64, 64)
        for module in other.modules():
            if isinstance(module, nn.LayerNorm):
                # otherwise tokens are associated with all super tokens alike, however that is done
                nn.init.constant_(module.weight, 5.0)
        folded = fold_for_inference(other, cpp=True)
        torch.testing.assert_close(logits_of(folded, images), logits_of(other, images), rtol=1e-4, atol=1e-5)

    def test_kernels_may_be_put_on_it(self, model, folded):
        images = torch.randn(1, 3, 64, 64)
        use_kernels(folded, "auto")
        torch.testing.assert_close(logits_of(folded, images), logits_of(model, images), rtol=1e-4, atol=1e-5)


class TestBuilding:
    @pytest.fixture(autouse=True)
    def nothing_built(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)

    def test_is_refused_elsewhere(self, monkeypatch):
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        with pytest.raises(SViTError, match=r"`cpp` is True, but .* tried on Linux alone, .*; this is Darwin on"):
            cpp.build.__wrapped__()

    @pytest.mark.parametrize(
        ("compiler", "message"),
        [("no-such-compiler", "'no-such-compiler' was not found; CXX"), ("false", "'false' failed with status 1")],
    )
    def test_says_what_is_wrong_with_the_compiler(self, monkeypatch, tmp_path, compiler, message):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(SViTError, match=message):
            cpp.build.__wrapped__()
        assert not list(tmp_path.glob("svit_hf/*"))

    def test_says_what_the_compiler_said(self, monkeypatch):
        def fail(command, **options):
            raise subprocess.CalledProcessError(1, command, stderr="a.h:3: note\na.h:5: error: no such thing\nmore")

        monkeypatch.setattr(subprocess, "run", fail)
        with pytest.raises(SViTError, match=r"failed with status 1: a\.h:5: error: no such thing"):
            cpp.build.__wrapped__()

    def test_says_where_it_cannot_write(self, monkeypatch, tmp_path):
        (tmp_path / "svit_hf").write_text("no folder")
        with pytest.raises(SViTError, match=r"svit_hf cannot be written .*; TORCH_EXTENSIONS_DIR"):
            cpp.build.__wrapped__()

    def test_compiles_once_for_the_same_code(self, monkeypatch, tmp_path):
        runs = []

        def compile(command, **options):
            runs.append(command)

        monkeypatch.setattr(subprocess, "run", compile)
        cpp.build.__wrapped__()
        cpp.build.__wrapped__()
        assert len(runs) == 1
        monkeypatch.setenv("CXX", "another-compiler")
        cpp.build.__wrapped__()
        assert len(list(tmp_path.glob("svit_hf/operators-*.so"))) == 2
