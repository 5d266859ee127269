# SPDX-License-Identifier: Apache-2.0
"""Compiled layers: the same outputs, one compilation for all the layers of a stage."""

import copy
import inspect

import pytest
import torch
from tiny import one_stage_config, two_stage_config
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from svit_hf import SViTBackbone, SViTForImageClassification
from svit_hf.errors import SViTError
from svit_hf.inference import compile_frozen, compile_layers, fold_for_inference
from svit_hf.inference.compilation import compile_with_constants


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def test_layers_of_a_stage_share_one_compilation():
    torch.manual_seed(0)
    # a rate per layer, which evaluation does not use
    model = fold_for_inference(SViTForImageClassification(two_stage_config(depths=[2, 2], drop_path_rate=0.3)))
    compiled = copy.deepcopy(model)
    counter = CompileCounterWithBackend("eager")
    compile_layers(compiled, backend=counter, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            pixels = torch.randn(2, 3, 64, 64)
            torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)
    assert counter.frame_count == 2


@pytest.mark.campaign
def test_inductor_compiles_once_for_all_sizes():
    torch.manual_seed(0)
    model = fold_for_inference(SViTForImageClassification(one_stage_config()))
    compiled = copy.deepcopy(model)
    compile_layers(compiled, fullgraph=True, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 3, 64, 96))
        with torch.compiler.set_stance("fail_on_recompile"):
            for shape in [(3, 3, 96, 64), (4, 3, 128, 128), (5, 3, 66, 35)]:
                pixels = torch.randn(shape)
                torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    "recompile_limit" not in inspect.signature(torch.compile).parameters, reason="this torch has one limit for all"
)
def test_layers_of_all_stages_do_not_use_up_the_limit_of_one_function():
    model = SViTForImageClassification(two_stage_config()).eval()
    counter = CompileCounterWithBackend("eager")
    compile_layers(model, backend=counter, dynamic=False)
    with torch.no_grad():
        for edge in range(32, 32 + 8 * 16, 16):
            model(torch.randn(1, 3, edge, edge))
    assert counter.frame_count == 2 * 8


@pytest.mark.slow
def test_recorded_outputs_come_out():
    model = SViTBackbone(two_stage_config(out_features=["stem", "stage1", "stage2"])).eval()
    compiled = copy.deepcopy(model)
    compile_layers(compiled, backend="eager")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, expected = (net(pixels, output_associations=True) for net in (compiled, model))
    torch.testing.assert_close(got.feature_maps, expected.feature_maps)
    assert len(got.associations) == 1
    torch.testing.assert_close(got.associations, expected.associations)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN to join operations in")
def test_generated_code_of_a_frozen_model_joins_convolution_and_gelu():
    torch.manual_seed(0)
    model = fold_for_inference(SViTForImageClassification(one_stage_config()))
    expected = copy.deepcopy(model)
    pixels = torch.randn(2, 3, 64, 64)
    compile_frozen(model, fullgraph=True)
    # gradients are not switched off here: freezing would not happen then
    found, (code,) = run_and_get_code(model, pixels)
    torch.testing.assert_close(found.logits, expected(pixels).logits, rtol=1e-4, atol=1e-4)
    convolutions = [line for line in code.splitlines() if "= torch.ops.mkldnn._convolution_pointwise" in line]
    assert "extern_kernels.convolution(" not in code
    # the stem's four, and that of the layer
    assert sum("'gelu'" in line for line in convolutions) >= 4 + 1
    assert "frozen_param" in code
    assert not torch._inductor.config.freezing


def test_any_network_is_traced_with_its_weights_as_constants():
    seen = []

    def backend(graph, inputs):
        seen.append((torch._inductor.config.freezing, torch.is_grad_enabled()))
        return graph

    # PyTorch compiles none of its own classes of modules
    class Network(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs)

    network = Network(2, 2)
    compile_with_constants(network, backend=backend)
    network(torch.ones(1, 2))
    assert seen == [(True, False)]
    assert not torch._inductor.config.freezing


def test_frozen_model_keeps_its_weights():
    model = fold_for_inference(SViTForImageClassification(two_stage_config()))
    pixels = torch.randn(2, 3, 64, 64)
    expected = model(pixels).logits
    compile_frozen(model, backend="eager")
    torch.testing.assert_close(model(pixels).logits, expected)
    for change in (model.half, lambda: model.to(torch.bfloat16), lambda: model.load_state_dict(model.state_dict())):
        with pytest.raises(SViTError, match="The weights of a frozen model are constants"):
            change()


def test_freezing_what_is_not_folded_is_refused():
    with pytest.raises(SViTError, match="`model` is not folded; compile what `fold_for_inference` returns"):
        compile_frozen(SViTForImageClassification(two_stage_config()))


@pytest.mark.parametrize("compile", [compile_layers, compile_frozen])
def test_other_models_are_refused(compile):
    with pytest.raises(SViTError, match="`model` is a Linear; it has to be an SViTForImageClassification"):
        compile(nn.Linear(2, 2))
