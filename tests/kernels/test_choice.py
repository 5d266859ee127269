# SPDX-License-Identifier: Apache-2.0
"""Which implementation is taken: what was asked for, what can run, and what is said about it."""

import copy
import importlib
import logging
import pickle
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from kernel_comparison import OperatorRecorder
from tiny import two_stage_config
from torch import nn

import svit_hf.model.modeling_svit
from svit_hf import SuperTokenAttention, SViTModel
from svit_hf.kernels import choice, use_kernels
from svit_hf.kernels import triton as triton_kernels


pytest.importorskip("triton")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_choice_made_before():
    for cached in (choice.resolve, choice._say_once):
        cached.cache_clear()
    yield
    for cached in (choice.resolve, choice._say_once):
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
            chosen = [choice.resolve("auto", GPU, torch.bfloat16, sampler) for sampler in ("soft", "soft", None)]
        assert chosen == ["triton"] * 3
        assert caplog.messages == ["triton kernels run the layers of SViT on cuda:0 in torch.bfloat16."]

    def test_does_not_prefer_kernels_that_were_never_timed(self, gpu):
        assert choice.resolve("auto", GPU, torch.bfloat16, "soft") is None

    def test_stays_silently_with_pytorch_on_a_cpu(self, preferred, caplog):
        with caplog.at_level(logging.INFO, "svit_hf.kernels"):
            assert choice.resolve("auto", torch.device("cpu"), torch.float32, "soft") is None
        assert caplog.messages == []

    def test_falls_back_on_a_gpu_and_says_why_once(self, gpu, preferred, without_triton, caplog):
        chosen = [choice.resolve("auto", GPU, torch.bfloat16, sampler) for sampler in ("soft", "soft", None)]
        assert chosen == [None] * 3
        (message,) = caplog.messages
        assert "because triton is not installed (pip install" in message


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
        with pytest.raises(ValueError, match="`kernels` is 'triton'") as error:
            choice.resolve("triton", device, dtype, sampler)
        assert reason in str(error.value)

    def test_is_refused_on_an_old_gpu(self, gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        with pytest.raises(ValueError, match=r"GPU of today is older than compute capability \(8, 0\)"):
            choice.resolve("triton", GPU, torch.float16)

    def test_is_refused_with_an_old_triton(self, monkeypatch):
        monkeypatch.setattr("svit_hf.kernels.triton.metadata.version", lambda name: "3.2.0")
        with pytest.raises(ValueError, match=r"because triton 3\.2 is older than 3\.3"):
            choice.resolve("triton", torch.device("cpu"), torch.float32)

    def test_is_met_by_a_triton_of_another_name(self, monkeypatch):
        def find_nothing(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr("svit_hf.kernels.triton.metadata.version", find_nothing)
        assert triton_kernels.find_obstacle(None, None, None) is None

    def test_is_refused_on_a_cpu_without_the_interpreter(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="the tokens are on cpu"):
            choice.resolve("triton", torch.device("cpu"), torch.float32)

    def test_is_refused_by_the_kill_switch(self, gpu, preferred, monkeypatch, caplog):
        monkeypatch.setenv(choice.KILL_SWITCH, "1")
        with pytest.raises(ValueError, match="SVIT_DISABLE_KERNELS is 1"):
            choice.resolve("triton", GPU, torch.float16)
        assert choice.resolve("auto", GPU, torch.float16) is None
        assert "SVIT_DISABLE_KERNELS is 1" in caplog.text


class TestModel:
    @pytest.fixture
    def model(self):
        return SViTModel(two_stage_config()).eval().requires_grad_(False)

    @staticmethod
    def operators_of(model, pixels):
        with OperatorRecorder() as recorder:
            model(pixels)
        return {name for name in recorder.names if name.startswith("svit_hf_triton")}

    def test_starts_without_kernels_and_gets_its_own_forward_back(self, model, device):
        pixels = torch.randn(1, 3, 36, 20, device=device)
        model.to(device)
        expected = model(pixels).last_hidden_state
        assert self.operators_of(model, pixels) == set()
        before = {name: dict(vars(module)) for name, module in model.named_modules()}
        use_kernels(model, "triton")
        assert self.operators_of(model, pixels) == {
            f"svit_hf_triton.{name}" for name in ("normalize_and_sample", "upsample_tokens", "depthwise_residual")
        }
        assert "triton" not in model.config.to_json_string()
        use_kernels(model, None)
        assert self.operators_of(model, pixels) == set()
        assert {name: vars(module).keys() for name, module in model.named_modules()} == {
            name: attributes.keys() for name, attributes in before.items()
        }
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, rtol=0, atol=0)

    def test_copies_and_pickles_keep_kernels_of_their_own(self, model, device):
        use_kernels(model.to(device), "triton")
        pixels = torch.randn(1, 3, 20, 20, device=device)
        expected = model(pixels).last_hidden_state
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            for parameter in model.parameters():
                assert not any(parameter is other for other in twin.parameters())
            assert len(self.operators_of(twin, pixels)) == 3
            twin.stages[0].layers[0].attention.norm.bias.fill_(5)
            assert not torch.equal(twin(pixels).last_hidden_state, expected)
            use_kernels(twin, None)
            assert len(self.operators_of(model, pixels)) == 3

    def test_what_was_put_over_it_since_computes_without_kernels_afterwards(self, model, device):
        attention, pixels = model.to(device).stages[0].layers[0].attention, torch.randn(1, 3, 20, 20, device=device)
        use_kernels(model, "triton")
        # as offloading does
        attention._old_forward, calls = attention.forward, []
        attention.forward = lambda *inputs, **options: calls.append(1) or attention._old_forward(*inputs, **options)
        use_kernels(model, None)
        assert self.operators_of(model, pixels) == set()
        use_kernels(model, "triton")
        # nor is it replaced
        model(pixels)
        assert calls == [1, 1]

    def test_serves_copies_of_the_code(self, device, tmp_path, monkeypatch):
        # as remote code from the Hub: the same files, imported once more
        package = tmp_path / "copied_code"
        shutil.copytree(Path(svit_hf.model.modeling_svit.__file__).parent, package)
        monkeypatch.syspath_prepend(tmp_path)
        copied = importlib.import_module("copied_code.modeling_svit")
        model = copied.SViTModel(two_stage_config()).eval().requires_grad_(False).to(device)
        assert not isinstance(model, SViTModel)
        use_kernels(model, "triton")
        assert len(self.operators_of(model, torch.randn(1, 3, 20, 20, device=device))) == 3

    def test_leaves_classes_with_a_forward_of_their_own(self, device):
        class Silent(SuperTokenAttention):
            def forward(self, hidden_states):
                return torch.zeros_like(hidden_states)

        class Named(SuperTokenAttention):
            pass

        tokens = torch.randn(1, 8, 4, 4, device=device)
        use_kernels(nn.ModuleList([silent := Silent(8, 2, cell_size=2), SuperTokenAttention(8, 2)]), "triton")
        assert (silent.to(device)(tokens) == 0).all()
        named = Named(8, 2, cell_size=2).to(device)
        use_kernels(named, "triton")
        assert self.operators_of(named, tokens)

    def test_auto_is_left_out_of_exported_programs_and_a_request_is_not(self, device, monkeypatch):
        attention = SuperTokenAttention(8, 2, cell_size=2).to(device).eval()
        monkeypatch.setattr(triton_kernels, "AUTO_DEVICES", (device.type,))
        tokens = torch.randn(1, 8, 4, 4, device=device)
        for kernels, in_program in (("auto", False), ("triton", True)):
            use_kernels(attention, kernels)
            assert self.operators_of(attention, tokens)
            exported = torch.export.export(attention, (tokens,))
            assert ("svit_hf_triton" in str(exported.graph)) == in_program

    def test_refuses_unknown_names_and_keeps_what_it_had(self, model):
        use_kernels(model, "auto")
        with pytest.raises(ValueError, match=r"`kernels` is 'cuda'; allowed are None, 'auto', 'triton'"):
            use_kernels(model, "cuda")
        assert model.stages[0].layers[0].attention.svit_kernels == "auto"

    def test_refuses_models_without_layers_of_svit(self):
        with pytest.raises(ValueError, match="`model` is a Linear without any layer of SViT"):
            use_kernels(nn.Linear(2, 2), "triton")

    def test_refuses_at_once_what_is_not_installed(self, model, without_triton):
        with pytest.raises(ValueError, match="triton is not installed"):
            use_kernels(model, "triton")

    def test_refuses_at_once_a_sampler_that_kernels_do_not_know(self, model):
        model.stages[0].layers[0].attention.sampler = "my_sampler"
        with pytest.raises(ValueError, match="the super-token sampler 'my_sampler' is not among those"):
            use_kernels(model, "triton")

    def test_refuses_in_forward_what_the_tokens_do_not_allow(self):
        attention = SuperTokenAttention(8, 2, cell_size=2).double()
        use_kernels(attention, "triton")
        with pytest.raises(ValueError, match=r"the tokens are torch\.float64"):
            attention(torch.zeros(1, 8, 4, 4, dtype=torch.float64))

    @pytest.mark.slow
    def test_whole_model_gives_the_same_outputs_and_gradients(self, device):
        model = SViTModel(two_stage_config()).to(device).train()
        pixels = torch.randn(1, 3, 36, 28, device=device)
        results = {}
        for name in (None, "triton"):
            use_kernels(model, name)
            model.zero_grad()
            outputs = model(pixels, output_super_tokens=True, output_associations=True)
            outputs.last_hidden_state.square().sum().backward()
            gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            results[name] = outputs.last_hidden_state, outputs.super_tokens, outputs.associations, gradients
        # the largest deviation measured was 0.23 of what this allows, 3.4e-6 of a tensor's norm
        torch.testing.assert_close(results["triton"], results[None], rtol=1e-3, atol=1e-4)
