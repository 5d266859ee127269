# SPDX-License-Identifier: Apache-2.0
import copy
import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
import tyro
from tiny import one_stage_config, tiny_config
from torch import nn

from svit_hf import SViTForImageClassification
from svit_hf.benchmark import comparison, forms, measuring
from svit_hf.benchmark.command import BenchmarkCommand, FormName
from svit_hf.benchmark.comparison import Comparison, Measurement, compare_forms
from svit_hf.benchmark.forms import FORMS, Form
from svit_hf.benchmark.measuring import Spread
from svit_hf.benchmark.report import recommendation_of, tables_of
from svit_hf.errors import SViTError
from svit_hf.extras import missing_packages
from svit_hf.inference import fold_for_inference


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Let everybody be called once per turn, in every dtype."""
    monkeypatch.setattr(measuring, "MAX_CALLS", 1)
    monkeypatch.setattr(comparison, "is_emulated", lambda dtype, device, stopwatch: False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SViTForImageClassification(tiny_config()).eval()


def compare(model, *names, **kwargs):
    usual = {"forms": names, "batch_sizes": (2,), "dtypes": ("fp32",), "rounds": 2, "device": "cpu"}
    return compare_forms(model, **(usual | kwargs))


def forms_of(result):
    return [(row.form, row.dtype) for row in result.measurements]


def measured(form, speed, *, dtype="fp32", batch_size=1, is_right=True):
    spread = Spread(speed, speed - 0.05, speed + 0.05)
    return Measurement(form, dtype, batch_size, 64, 100 * speed, spread, 1e-6, is_right, 10**6)


def test_command_measures_and_recommends(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    arguments = [tmp_path / "model", "--forms", "folded", "--batch-size", "1", "2", "--rounds", "2", "--device", "cpu"]
    arguments += ["--output", tmp_path / "all.json"]
    assert tyro.cli(BenchmarkCommand, args=list(map(str, arguments))).run() == 0
    shown = capsys.readouterr().out
    assert "batch 1, 64 pixels" in shown
    assert "batch 2, 64 pixels" in shown
    assert "Recommended on this machine" in shown
    content = json.loads((tmp_path / "all.json").read_text())
    assert {"command", "versions", "commit", "device", "measurements", "left_out"} == content.keys()
    assert len(content["measurements"]) == 2 * 2 * 2
    assert all(row["is_right"] and row["difference"] < 0.05 for row in content["measurements"])


def test_command_offers_every_form():
    assert get_args(FormName) == tuple(FORMS)


def test_outputs_are_compared_with_the_eager_model_in_float32(model):
    result = compare(model, "folded", dtypes=("fp32", "bf16"))
    assert forms_of(result) == [("eager", "fp32"), ("folded", "fp32"), ("eager", "bf16"), ("folded", "bf16")]
    eager, folded, half, _ = result.measurements
    assert eager.difference == 0
    assert 0 < folded.difference < 1e-5 < half.difference < 0.05
    assert eager.speedup == (1, 1, 1)
    assert folded.image_size == 64


def test_memory_is_weights_and_what_a_call_needs(model, monkeypatch):
    monkeypatch.setattr(comparison, "measure_working_memory", lambda work, device: 1000)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert compare(model).measurements[0].memory_bytes == weights + 1000


def test_form_with_other_outputs_is_marked_and_never_recommended(model, monkeypatch):
    def broken(model):
        model = fold_for_inference(model)
        model.classifier.bias += 1.0
        return model

    monkeypatch.setitem(FORMS, "folded", replace(FORMS["folded"], prepare=broken))
    result = compare(model, "folded")
    assert [row.is_right for row in result.measurements] == [True, False]
    assert "WRONG: not recommended" in tables_of(result)[0].splitlines()[-1]
    fast = replace(result.measurements[1], speedup=Spread(9.0, 9.0, 9.0))
    assert Comparison([result.measurements[0], fast]).best(2).form == "eager"


def test_nan_is_wrong(model, monkeypatch):
    form = Form("folded", lambda model: torch.nn.Sequential(model, _Nan()))
    monkeypatch.setitem(FORMS, "folded", form)
    assert [row.is_right for row in compare(model, "folded").measurements] == [True, False]


class _Nan(torch.nn.Module):
    def forward(self, outputs):
        return outputs.logits * torch.nan


def test_what_cannot_run_is_left_out_with_the_reason(model, monkeypatch):
    def refuse(model):
        raise ValueError("no GPU here")

    monkeypatch.setitem(FORMS, "kernels", replace(FORMS["kernels"], prepare=refuse))
    result = compare(model, "kernels", dtypes=("fp32", "bf16"))
    assert forms_of(result) == [("eager", "fp32"), ("eager", "bf16")]
    assert result.left_out == ["kernels: no GPU here"]
    assert tables_of(result)[-1] == "left out: kernels: no GPU here"


def test_emulated_dtype_is_left_out(model, monkeypatch):
    monkeypatch.setattr(comparison, "is_emulated", lambda dtype, device, stopwatch: dtype == "bf16")
    result = compare(model, dtypes=("fp32", "bf16"))
    assert forms_of(result) == [("eager", "fp32")]
    assert result.left_out == ["bf16: this device only emulates it"]


def test_model_of_another_kind_runs_as_it_is():
    other = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    result = compare(other, "folded", "kernels", image_size=32)
    assert forms_of(result) == [("eager", "fp32")]
    assert [reason.partition(" without")[0].partition(";")[0] for reason in result.left_out] == [
        "kernels: `model` is a Sequential",
        "folded: `model` is a Sequential",
    ]


def test_model_is_left_as_it_is(model):
    original = copy.deepcopy(model.state_dict())
    half = copy.deepcopy(model).to(torch.bfloat16).train()
    compare(half, "folded")
    assert half.training
    assert half.dtype == torch.bfloat16
    compare(model, "folded")
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())


def test_fastest_form_is_recommended_with_the_code_that_gets_it(model):
    rows = [measured("eager", 1.0), measured("folded", 1.2), measured("folded", 1.5, dtype="bf16")]
    text = recommendation_of(Comparison(rows))
    assert "batch 1: folded, fp32; 1.20 times as fast" in text
    assert "batch 1: folded, bf16; 1.50 times as fast as the model as it is, logits differ by 1e-06" in text
    # the last lines get the last form
    code = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")][-3:]
    variables = {"model": copy.deepcopy(model), "torch": torch}
    exec("\n".join(code), variables)
    assert variables["model"].dtype == torch.bfloat16
    assert "SViTDepthwiseResidual" in str(variables["model"])


def test_noise_is_no_reason_to_change():
    rows = [measured("eager", 1.0), measured("folded", 1.04)]
    assert "batch 1: eager, fp32; no other form was faster beyond noise" in recommendation_of(Comparison(rows))


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if not form.is_program])
def test_code_of_a_form_runs(model, name, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if "kernels" in name:
        pytest.importorskip("triton")
    variables = {"model": copy.deepcopy(model)}
    exec(FORMS[name].code, variables)
    assert isinstance(variables["model"], SViTForImageClassification)


def assert_measured(name):
    result = compare(SViTForImageClassification(one_stage_config(image_size=32)), name)
    assert [row.form for row in result.measurements] == ["eager", name], result.left_out
    assert result.measurements[1].is_right


# exporting, quantising and compiling have tests of their own, and the tests below stand for what is around them
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("pt2", None),
        ("onnx", "export"),
        ("openvino", "openvino"),
        ("int8", "quantization"),
        ("folded-compiled", None),
        ("folded-frozen", None),
    ],
)
def test_programs_and_compiled_forms_are_measured(name, extra):
    if extra and missing_packages(extra):
        pytest.skip(f"without the packages of the extra {extra}")
    assert_measured(name)


def test_compiled_forms_are_compiled(monkeypatch):
    compiled = []
    # the front of the compiler alone, without what generates code
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, compile=nn.Module.compile, **options: (
            compiled.append(options["dynamic"]) or compile(self, backend="eager", **options)
        ),
    )
    for name in ("folded-frozen", "folded-compiled"):
        assert_measured(name)
    assert compiled == [False] * 2


def test_program_is_exported_once_for_all_sizes(model, monkeypatch, tmp_path):
    calls = []

    def export(model, folder, options, *, images):
        calls.append((options.format, images))
        return type("Report", (), {"num_bytes": 4321})

    monkeypatch.setattr(comparison, "measure_working_memory", lambda work, device: 1000)
    monkeypatch.setattr(forms, "export_classifier", export)
    monkeypatch.setattr(forms, "load_program", lambda folder: lambda pixels: model(pixels).logits)
    result = compare(model, "pt2", batch_sizes=(1, 2))
    assert calls == [("pt2", None)]
    assert [row.form for row in result.measurements] == ["eager", "pt2"] * 2
    assert result.measurements[1].memory_bytes == 4321 + 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forms": ("faster",)}, "`forms` has 'faster'; allowed are eager, kernels"),
        ({"dtypes": ("fp8",)}, "`dtypes` has 'fp8'; allowed are fp32, bf16, fp16"),
        ({"rounds": 0}, "`rounds` is 0"),
        ({"batch_sizes": ()}, r"`batch_sizes` are \(\)"),
        ({"batch_sizes": (0,)}, r"`batch_sizes` are \(0,\)"),
        ({"device": "abacus"}, "`device` is 'abacus', which cannot be used"),
    ],
)
def test_impossible_arguments_are_named(model, arguments, message):
    with pytest.raises(SViTError, match=message):
        compare(model, **arguments)
