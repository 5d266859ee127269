# SPDX-License-Identifier: Apache-2.0
"""Exported programs and 8-bit models as contestants; what `svit-hf export` writes is tested with it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.benchmark import programs
from svit_hf.benchmark.contestants import Session, classifier_contestants
from svit_hf.benchmark.forms import SVIT_FORMS, Situation
from svit_hf.benchmark.gate import GateError
from svit_hf.benchmark.machine import Peaks
from svit_hf.benchmark.networks import SViTNetwork
from svit_hf.benchmark.programs import Programs
from svit_hf.export.exporting import ExportOptions
from svit_hf.extras import missing_packages


CPU = torch.device("cpu")
PEAKS = Peaks(matrix_product={"fp32": 1e11}, convolution={"fp32": 1e11}, copy=1e10)
EXPORTED = frozenset({"onnx", "onnx int8", "pt2", "pt2 int8"})
needs_torchao = pytest.mark.skipif(bool(missing_packages("quantization")), reason="torchao is not installed")


@pytest.fixture
def exporter(monkeypatch):
    """Replace the exporter by one that keeps the model, whose logits are scaled by `factors`; it counts `calls`."""
    stand_in = SimpleNamespace(calls=[], factors={"none": 1.0, "int8": 1.1})
    kept = {}

    def export(model, folder, options, *, images):
        assert (images is None) == (options.quantize == "none")
        stand_in.calls.append((options.format, options.quantize))
        kept[folder] = copy.deepcopy(model), options
        return SimpleNamespace(num_bytes=4321)

    def load(folder):
        model, options = kept[folder]
        return lambda pixel_values: model(pixel_values).logits * stand_in.factors[options.quantize]

    monkeypatch.setattr(programs, "export_classifier", export)
    monkeypatch.setattr(programs, "load_program", load)
    return stand_in


def build(image_size):
    return SViTForImageClassification(tiny_config())


NETWORK = SViTNetwork("tiny", build, tiny_config())


def contestants_of(additions, programs_of_run, image_size=64, batch_size=2, dtypes=("fp32",)):
    session = Session(CPU, None, 1, dtypes, PEAKS)
    situation = Situation("inference", CPU, additions=frozenset(additions), programs=programs_of_run)
    return classifier_contestants(
        NETWORK, SVIT_FORMS, situation, session, batch_size=batch_size, image_size=image_size
    )


def test_programs_compete_after_one_export_for_all_sizes(exporter):
    with Programs() as of_run:
        for image_size, batch_size in ((64, 1), (96, 3)):
            found = {one.name: one for one in contestants_of(EXPORTED, of_run, image_size, batch_size)}
            assert list(found)[-4:] == [
                "tiny ONNX Runtime",
                "tiny ONNX Runtime, int8",
                "tiny torch.export",
                "tiny torch.export, int8",
            ]
            assert found["tiny ONNX Runtime"].error < 1e-6
            assert found["tiny ONNX Runtime, int8"].error == pytest.approx(0.1, rel=1e-3)
            assert found["tiny torch.export"].workload.state_bytes() == 4321
            assert found["tiny torch.export"].workload.outputs()["logits"].shape == (batch_size, 5)
    assert exporter.calls == [("onnx", "none"), ("onnx", "int8"), ("pt2", "none"), ("pt2", "int8")]


@pytest.mark.parametrize(("quantize", "factor"), [("none", 1.001), ("int8", 1.6), ("int8", torch.nan)])
def test_wrong_program_is_red(exporter, quantize, factor):
    exporter.factors[quantize] = factor
    with Programs() as of_run, pytest.raises(GateError, match=r"tiny ONNX Runtime.* No times are shown"):
        contestants_of(EXPORTED, of_run)


def test_other_weights_and_other_cells_are_another_program(exporter):
    model = build(64)
    with Programs() as of_run:
        first = of_run.load(model, ExportOptions())
        assert of_run.load(copy.deepcopy(model), ExportOptions()) is first
        changed = copy.deepcopy(model)
        changed.svit.stages[0].layers[0].mlp.fc1.bias.data[0] += 1
        other_cells = SViTForImageClassification(tiny_config(super_token_sizes=[8, 2, 1, 1]))
        other_cells.load_state_dict(model.state_dict())
        for other in (changed, other_cells):
            assert of_run.load(other, ExportOptions()) is not first
    assert len(exporter.calls) == 3


def test_programs_take_part_only_where_they_were_asked_for(exporter):
    with Programs() as of_run:
        assert [one.name for one in contestants_of((), of_run)] == ["tiny eager", "tiny folded"]
        names = [(one.name, one.dtype) for one in contestants_of({"onnx"}, of_run, dtypes=("fp32", "bf16"))]
    assert [name for name in names if "ONNX" in name[0]] == [("tiny ONNX Runtime", "fp32")]


@needs_torchao
def test_8_bits_compete_in_memory_and_are_smaller():
    found = {one.name: one for one in contestants_of({"int8"}, None)}
    quantized, folded = found["tiny folded, int8"], found["tiny folded"]
    assert 1e-3 < quantized.error < 0.1
    assert quantized.workload.state_bytes() < folded.workload.state_bytes()
