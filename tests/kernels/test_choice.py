# SPDX-License-Identifier: Apache-2.0
"""Which implementation is taken: what was asked for, what can run, and what is said about it."""

import logging
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from tiny import tiny_config

from svit_hf import SuperTokenAttention, SViTModel, kernels
from svit_hf.kernels import triton as triton_kernels
from svit_hf.model.implementation_svit import find_kernels


pytest.importorskip("triton")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_choice_made_before():
    for cached in (kernels.resolve, kernels._say_once):
        cached.cache_clear()
    yield
    for cached in (kernels.resolve, kernels._say_once):
        cached.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Let every question about a GPU be answered as by one of today."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU of today")
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.fixture
def preferred(monkeypatch):
    """Let `auto` prefer these kernels on GPUs."""
    monkeypatch.setattr(triton_kernels, "AUTO_DEVICES", ("cuda",))


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setattr("svit_hf.kernels.triton.find_spec", lambda name: None)


class TestAuto:
    def test_takes_triton_where_it_is_preferred_and_says_so_once(self, gpu, preferred, caplog):
        with caplog.at_level(logging.INFO, "svit_hf.kernels"):
            chosen = [kernels.resolve("auto", GPU, torch.bfloat16, sampler) for sampler in ("soft", "soft", None)]
        assert chosen == ["triton"] * 3
        assert caplog.messages == ["triton runs the super-token operations on cuda:0 in torch.bfloat16."]

    def test_does_not_prefer_kernels_that_were_never_timed(self, gpu):
        assert kernels.resolve("auto", GPU, torch.bfloat16, "soft") == "eager"

    def test_stays_silently_with_pytorch_on_a_cpu(self, preferred, caplog):
        with caplog.at_level(logging.INFO, "svit_hf.kernels"):
            assert kernels.resolve("auto", torch.device("cpu"), torch.float32, "soft") == "eager"
        assert caplog.messages == []

    def test_falls_back_on_a_gpu_and_says_why_once(self, gpu, preferred, without_triton, caplog):
        chosen = [kernels.resolve("auto", GPU, torch.bfloat16, sampler) for sampler in ("soft", "soft", None)]
        assert chosen == ["eager"] * 3
        (message,) = caplog.messages
        assert "because triton is not installed (pip install" in message

    def test_exported_program_has_no_kernels(self, gpu, monkeypatch):
        tokens = torch.empty(1, 4, 2, 2, device="meta")
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        monkeypatch.setattr("svit_hf.model.implementation_svit.resolve_implementation", lambda *_: "triton")
        assert find_kernels("auto", tokens) is None
        assert find_kernels("triton", tokens) is torch.ops.svit_hf_triton


class TestRequest:
    @pytest.mark.parametrize(
        ("device", "dtype", "sampler", "reason"),
        [
            (GPU, torch.float64, "soft", "the tokens are torch.float64, and triton's kernels take torch.bfloat16"),
            (GPU, torch.bfloat16, "my_sampler", "the super-token sampler 'my_sampler' is not among those"),
            (torch.device("mps"), torch.float32, "soft", "the tokens are on mps"),
        ],
        ids=["dtype", "sampler", "device"],
    )
    def test_is_refused_with_the_reason(self, gpu, device, dtype, sampler, reason):
        with pytest.raises(ValueError, match="`super_token_implementation` is 'triton'") as error:
            kernels.resolve("triton", device, dtype, sampler)
        assert reason in str(error.value)

    def test_is_refused_on_an_old_gpu(self, gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        with pytest.raises(ValueError, match=r"GPU of today is older than compute capability \(8, 0\)"):
            kernels.resolve("triton", GPU, torch.float16)

    def test_is_refused_with_an_old_triton(self, monkeypatch):
        monkeypatch.setattr("svit_hf.kernels.triton.metadata.version", lambda name: "3.2.0")
        with pytest.raises(ValueError, match=r"because triton 3\.2 is older than 3\.3"):
            kernels.resolve("triton", torch.device("cpu"), torch.float32)

    def test_is_met_by_a_triton_of_another_name(self, monkeypatch):
        def find_nothing(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr("svit_hf.kernels.triton.metadata.version", find_nothing)
        assert triton_kernels.find_obstacle(None, None, None) is None

    def test_is_refused_on_a_cpu_without_the_interpreter(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="the tokens are on cpu"):
            kernels.resolve("triton", torch.device("cpu"), torch.float32)

    def test_is_refused_by_the_kill_switch(self, gpu, preferred, monkeypatch, caplog):
        monkeypatch.setenv(kernels.KILL_SWITCH, "1")
        with pytest.raises(ValueError, match="SVIT_DISABLE_KERNELS is 1"):
            kernels.resolve("triton", GPU, torch.float16)
        assert kernels.resolve("auto", GPU, torch.float16) == "eager"
        assert "SVIT_DISABLE_KERNELS is 1" in caplog.text


class TestModel:
    def test_starts_with_auto_and_says_what_runs(self):
        model = SViTModel(tiny_config())
        assert model.super_token_implementation == "eager"
        model.set_super_token_implementation("triton")
        layer = model.stages[0].layers[0]
        for module in (layer.attention, layer.position_embedding, layer.mlp.depthwise):
            assert module.implementation == "triton"
        assert "triton" not in model.config.to_json_string()

    @pytest.mark.parametrize("make", [lambda: SViTModel(tiny_config()), lambda: SuperTokenAttention(8, 2)])
    def test_refuses_unknown_names_and_keeps_what_it_had(self, make):
        module = make()
        with pytest.raises(ValueError, match="is 'cuda'; allowed are auto, eager, triton"):
            module.set_super_token_implementation("cuda")
        assert all(getattr(layer, "implementation", "auto") == "auto" for layer in module.modules())

    def test_refuses_at_once_what_is_not_installed(self, without_triton):
        with pytest.raises(ValueError, match="triton is not installed"):
            SuperTokenAttention(8, 2).set_super_token_implementation("triton")

    def test_refuses_in_forward_what_the_tokens_do_not_allow(self):
        attention = SuperTokenAttention(8, 2, cell_size=2).double()
        attention.set_super_token_implementation("triton")
        with pytest.raises(ValueError, match=r"the tokens are torch\.float64"):
            attention(torch.zeros(1, 8, 4, 4, dtype=torch.float64))

    def test_copied_code_works_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "svit_hf.kernels", None)
        attention = SuperTokenAttention(8, 2, cell_size=2)
        assert attention(torch.zeros(1, 8, 4, 4)).shape == (1, 8, 4, 4)
        with pytest.raises(ValueError, match="without the package `svit_hf` only 'auto' and 'eager' are allowed"):
            attention.set_super_token_implementation("triton")

    @pytest.mark.slow
    def test_whole_model_gives_the_same_outputs_and_gradients(self, device):
        model = SViTModel(tiny_config(depths=[1, 1, 1, 1])).to(device).train()
        pixels = torch.randn(1, 3, 60, 52, device=device)
        results = {}
        for name in ("eager", "triton"):
            model.set_super_token_implementation(name)
            assert model.super_token_implementation == name
            model.zero_grad()
            outputs = model(pixels, output_super_tokens=True, output_associations=True)
            outputs.last_hidden_state.square().sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            results[name] = outputs.last_hidden_state, outputs.super_tokens, outputs.associations, gradients
        # the largest deviation measured was 0.23 of what this allows, 3.4e-6 of a tensor's norm
        torch.testing.assert_close(results["triton"], results["eager"], rtol=1e-3, atol=1e-4)
