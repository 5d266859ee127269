# SPDX-License-Identifier: Apache-2.0
import json
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from tiny import tiny_config

from svit_hf import SViTForImageClassification, SViTImageProcessorPil
from svit_hf.errors import SViTError
from svit_hf.export import exporting
from svit_hf.export.exporting import (
    CHECK_FILE,
    FLOAT_TOLERANCE,
    MIN_TRANSFORMERS,
    ExportError,
    ExportOptions,
    export_classifier,
    load_program,
)
from svit_hf.extras import missing_packages
from svit_hf.inference import quantize_for_inference


needs_exporters = pytest.mark.skipif(
    Version(version("transformers")) < Version(MIN_TRANSFORMERS),
    reason=f"transformers before {MIN_TRANSFORMERS} has no exporters that save",
)
needs_torchao = pytest.mark.skipif(bool(missing_packages("quantization")), reason="torchao is not installed")
needs_openvino = pytest.mark.skipif(bool(missing_packages("openvino")), reason="openvino is not installed")
needs_onnx = pytest.mark.skipif(
    bool(missing_packages("export")), reason="the packages of the extra export are missing"
)

LABELS = ["crane", "Zürich", "crane", "d", "e"]


def classifier(**fields):
    """Return a classifier of two stages, with logits of a size that differences show in."""
    layout = {
        "image_size": 32,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "super_token_sizes": [2, 1],
        "num_sampling_iterations": [1, 1],
        "use_layer_scale": [False, True],
        "id2label": dict(enumerate(LABELS)),
    }
    model = SViTForImageClassification(tiny_config(**(layout | fields)))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.1, 0.5)
        model.classifier.weight.mul_(50)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return classifier()


@pytest.fixture
def program_of_constants(monkeypatch):
    """Replace the exporter: what it "writes" gives the model's logits, moved by what the returned list holds."""
    offsets = [0.0]

    def write(model, folder, options, inputs):
        (folder / f"model.{options.format}").write_bytes(b"program")

        def load(folder):
            assert (folder / f"model.{options.format}").read_bytes() == b"program"
            return lambda pixel_values: model(pixel_values).logits + offsets[0]

        monkeypatch.setattr(exporting, "load_program", load)

    monkeypatch.setattr(exporting, "_write_program", write)
    return offsets


@needs_exporters
class TestCheck:
    def test_report_is_written_beside_the_program(self, tmp_path, program_of_constants):
        report = export_classifier(classifier(), tmp_path / "out", ExportOptions("pt2"))
        content = json.loads((tmp_path / "out" / CHECK_FILE).read_text())
        assert content["error"] == report.error == report.sizes.max_error <= FLOAT_TOLERANCE
        assert content["options"]["format"] == "pt2"
        assert content["versions"]["torch"] == torch.__version__
        assert content["num_bytes"] == len(b"program")
        assert len(content["sizes"]["shapes"]) == 4

    @pytest.mark.parametrize(
        ("format", "compared"), [("onnx", [1, 3, 5]), ("openvino", [1, 3, 5]), ("pt2", [0, 1, 2, 3, 4, 5])]
    )
    def test_int8_is_compared_on_pictures_that_did_not_calibrate(
        self, tmp_path, monkeypatch, program_of_constants, format, compared
    ):
        monkeypatch.setattr(exporting, "_check_installation", lambda options: None)
        monkeypatch.setattr(exporting, "_prepare", lambda model, options: model)
        monkeypatch.setattr(exporting, "_packages", lambda options: ("torch",))
        seen = []
        compare = exporting.compare
        monkeypatch.setattr(exporting, "compare", lambda *args: seen.append(list(args[2])) or compare(*args))
        images = torch.randn(6, 3, 32, 32)
        program_of_constants[0] = 0.01
        options = ExportOptions(format, "int8")
        report = export_classifier(classifier(), tmp_path / "out", options, images=images)
        assert torch.equal(torch.cat(seen[-1]), images[compared])
        assert report.error == report.images.mean_error > 0
        program_of_constants[0] = 100.0
        with pytest.raises(ExportError, match=r"mean relative difference on the pictures .* Nothing was written"):
            export_classifier(classifier(), tmp_path / "other", options, images=images)

    @pytest.mark.parametrize("offset", [0.01, torch.nan])
    def test_program_that_differs_leaves_nothing_behind(self, tmp_path, program_of_constants, offset):
        program_of_constants[0] = offset
        with pytest.raises(ExportError, match=r"the exported program is not the model: .* Nothing was written"):
            export_classifier(classifier(), tmp_path / "out", ExportOptions("pt2"))
        assert list(tmp_path.iterdir()) == []

    def test_tolerance_decides(self, tmp_path, program_of_constants):
        program_of_constants[0] = 0.01
        report = export_classifier(classifier(), tmp_path / "out", ExportOptions("pt2", tolerance=0.05))
        assert 0.009 < report.error < 0.05
        with pytest.raises(ExportError, match=r"`tolerance` 1\.00e-03"):
            export_classifier(classifier(), tmp_path / "other", ExportOptions("pt2", tolerance=1e-3))

    def test_folder_in_use_is_left_alone(self, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(SViTError, match=r"`output_dir` is .*, which is in use"):
            export_classifier(classifier(), tmp_path, ExportOptions("pt2"))
        assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

    def test_full_disk_is_noticed_before_anything_is_written(self, tmp_path, monkeypatch):
        usage = exporting.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
        monkeypatch.setattr(exporting, "_write_program", None)
        with pytest.raises(ExportError, match=r"on a disk with 1 MB left; exporting this model takes up to 17 MB"):
            export_classifier(classifier(), tmp_path / "out", ExportOptions("pt2"))
        assert list(tmp_path.iterdir()) == []

    def test_model_is_left_as_it_is(self, tmp_path, program_of_constants):
        model = classifier().to(torch.float64).train()
        export_classifier(model, tmp_path / "out", ExportOptions("pt2"))
        assert model.training
        assert model.dtype == torch.float64


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"format": "tflite"}, "`format` is 'tflite'; allowed are onnx, openvino, pt2"),
            ({"quantize": "int4"}, "`quantize` is 'int4'; allowed are none, int8"),
            ({"format": "web", "quantize": "int8"}, "with `format` 'web' there is float32 alone"),
            ({"format": "web", "image_size": 96}, "size that the model's image processor"),
            ({"format": "pt2", "quantize": "int8", "fold": False}, "'pt2' is always made of the folded model"),
            ({"batch_size": 2}, "`batch_size` is 2 with `format` 'onnx'; allowed is .* with 'openvino'"),
            (
                {"format": "openvino", "batch_size": 0},
                "`batch_size` is 0 with `format` 'openvino'; allowed is .* at least 1",
            ),
            ({"format": "pt2", "opset": 18}, "`opset` is 18; with `format` 'pt2' there is none"),
            ({"tolerance": -1.0}, r"`tolerance` is -1\.0; it has to be at least 0"),
            ({"tolerance": float("nan")}, "`tolerance` is nan; it has to be at least 0"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_impossible_option_is_named(self, arguments, message):
        with pytest.raises(ExportError, match=message):
            ExportOptions(**arguments)

    @needs_exporters
    @pytest.mark.parametrize(("format", "size", "least"), [("pt2", 8, 9), ("onnx", 7, 8)])
    def test_image_size_below_the_smallest(self, tmp_path, format, size, least):
        with pytest.raises(ExportError, match=f"`image_size` is {size}x{size}; .* at least {least}x{least} pixels"):
            export_classifier(classifier(), tmp_path / "out", ExportOptions(format, image_size=size))

    @pytest.mark.parametrize(
        ("quantize", "images", "message"),
        [
            ("int8", None, "`quantize` is 'int8', `images` are none"),
            ("none", torch.zeros(4, 3, 32, 32), "`quantize` is 'none', `images` are 4"),
            ("int8", torch.zeros(1, 3, 32, 32), "`images` has shape .* N at least 2"),
            ("int8", torch.zeros(4, 1, 32, 32), r"expected is \(N, 3, height, width\)"),
        ],
        ids=["none", "useless", "one", "grey"],
    )
    def test_images_are_for_int8(self, tmp_path, quantize, images, message):
        with pytest.raises(ExportError, match=message):
            export_classifier(classifier(), tmp_path / "out", ExportOptions(quantize=quantize), images=images)

    def test_old_transformers_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(exporting, "version", lambda name: "5.5.4")
        with pytest.raises(ExportError, match=r"transformers 5\.23 or newer; installed is 5\.5\.4"):
            export_classifier(classifier(), tmp_path / "out", ExportOptions("pt2"))

    @needs_exporters
    @pytest.mark.parametrize(
        ("options", "images", "extra"),
        [
            (ExportOptions(), None, "export"),
            (ExportOptions("openvino"), None, "openvino"),
            (ExportOptions("openvino", "int8"), torch.zeros(2, 3, 32, 32), "export"),
            (ExportOptions("pt2", "int8"), torch.zeros(2, 3, 32, 32), "quantization"),
        ],
        ids=["onnx", "openvino", "openvino-int8", "pt2-int8"],
    )
    def test_missing_package_is_named(self, tmp_path, monkeypatch, options, images, extra):
        monkeypatch.setattr("svit_hf.extras.missing_packages", lambda extra: ["no_such_package"])
        with pytest.raises(SViTError, match=rf"needs no_such_package; .* pip install \"svit-hf\[{extra}\]\""):
            export_classifier(classifier(), tmp_path / "out", options, images=images)

    @needs_exporters
    def test_missing_package_of_a_program_is_named(self, tmp_path, monkeypatch):
        packages = {"metadata": {"packages": {"torch": "2.13.0", "torchao": "0.18.0"}}}
        (tmp_path / "export.json").write_text(json.dumps({"components": {"model": packages}}))
        monkeypatch.setattr("svit_hf.extras.missing_packages", lambda extra: ["torchao"])
        with pytest.raises(SViTError, match="needs torchao; install it with"):
            load_program(tmp_path)


@pytest.mark.slow
@needs_exporters
class TestPrograms:
    @needs_onnx
    def test_onnx(self, model, tmp_path, capsys):
        import onnxruntime

        processor = SViTImageProcessorPil(size={"shortest_edge": 32})
        report = export_classifier(model, tmp_path / "out", image_processor=processor)
        assert 0 < report.error < 1e-5
        assert report.sizes.max_logit > 0.1
        assert report.sizes.unchanged_top1 == 1
        assert SViTImageProcessorPil.from_pretrained(tmp_path / "out").size == {"shortest_edge": 32}
        # progress is not a result
        assert capsys.readouterr().out == ""

        # nothing of this machine: operators would name the files that they came from
        assert b"modeling_svit" not in (tmp_path / "out" / "model.onnx").read_bytes()
        session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
        (pixels,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (pixels.name, pixels.shape[1]) == ("pixel_values", 3)
        assert all(isinstance(pixels.shape[axis], str) for axis in (0, 2, 3))
        assert (logits.name, logits.shape[1]) == ("logits", 5)
        assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == LABELS
        # sizes that the export did not compare; 8 pixels are one token of the last stage
        for shape in [(5, 3, 8, 40), (1, 3, 75, 21)]:
            images = torch.randn(shape)
            with torch.no_grad():
                expected = model(images).logits
            found = session.run(["logits"], {"pixel_values": images.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=FLOAT_TOLERANCE)

        self._check_that_a_changed_program_is_noticed(model, tmp_path / "out")

    @staticmethod
    def _check_that_a_changed_program_is_noticed(model, folder):
        weights = folder / "model.onnx.data"
        content = bytearray(weights.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        weights.write_bytes(content)
        images = exporting.batches_of_many_sizes(model.config, (32, 32), 8)
        with torch.no_grad():
            found = exporting.compare(load_program(folder), exporting.predict_with(model), images)
        assert not found.max_error <= FLOAT_TOLERANCE

    def test_pt2(self, model, tmp_path):
        report = export_classifier(model, tmp_path / "out", ExportOptions("pt2", fold=False))
        # the same operators in the same order, but for the attention
        assert report.error < 1e-5
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        images = torch.randn(4, 3, 33, 71)
        with torch.no_grad():
            torch.testing.assert_close(program(pixel_values=images).logits, model(images).logits)

    @needs_openvino
    def test_openvino(self, tmp_path):
        model = classifier(num_attention_heads=[1, 4])
        report = export_classifier(model, tmp_path / "out", ExportOptions("openvino"))
        # half precision, of weights or of the arithmetic, would be 1e-3
        assert 0 < report.error < 1e-5
        assert report.num_bytes > sum(parameter.nbytes for parameter in model.parameters())
        assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["1"] == "Zürich"
        # what reports to its makers was not there
        assert "openvino_telemetry" not in sys.modules
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        program = openvino.compile_model(tmp_path / "out" / "model.xml", "CPU", settings)
        assert (program.inputs[0].any_name, program.outputs[0].any_name) == ("pixel_values", "logits")
        for shape in [(5, 3, 9, 40), (1, 3, 75, 21)]:
            images = torch.randn(shape)
            with torch.no_grad():
                expected = model(images).logits
            found = torch.from_numpy(program({"pixel_values": images.numpy()})["logits"])
            torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT_TOLERANCE)

    @pytest.mark.campaign
    @needs_openvino
    def test_openvino_for_batches_of_one_shape(self, tmp_path):
        model = classifier(num_attention_heads=[1, 4])
        options = ExportOptions("openvino", image_size=48, batch_size=3)
        report = export_classifier(model, tmp_path / "out", options)
        assert report.sizes.shapes == [[3, 3, 48, 48]] * 2
        import openvino

        program = openvino.Core().read_model(tmp_path / "out" / "model.xml")
        assert list(program.inputs[0].shape) == [3, 3, 48, 48]
        images = torch.randn(3, 3, 48, 48)
        with torch.no_grad():
            expected = model(images).logits
        torch.testing.assert_close(load_program(tmp_path / "out")(images), expected, rtol=0, atol=FLOAT_TOLERANCE)
        # what docs/guides/export.md says: OpenVINO is wrong with as many tokens as heads in a stage, here four
        with pytest.raises(ExportError, match="the exported program is not the model"):
            export_classifier(model, tmp_path / "wrong", replace(options, image_size=16))
        assert not (tmp_path / "wrong").exists()

    @needs_onnx
    @pytest.mark.parametrize(
        # what OpenVINO takes is made of what ONNX Runtime takes
        "format",
        [pytest.param("onnx", marks=pytest.mark.campaign), pytest.param("openvino", marks=needs_openvino)],
    )
    def test_int8_changes_logits_a_little(self, model, tmp_path, format):
        images = torch.randn(8, 3, 32, 32)
        report = export_classifier(model, tmp_path / "out", ExportOptions(format, quantize="int8"), images=images)
        assert report.images.num_images == 4
        # 8 bits are seen, and are not far off
        assert 1e-3 < report.images.mean_error < 0.1
        assert report.error == report.images.mean_error
        if format == "openvino":
            # what OpenVINO computes in 8 bits is between these; no other program is left beside it
            assert "FakeQuantize" in (tmp_path / "out" / "model.xml").read_text()
            names = {"model.xml", "model.bin", "config.json", CHECK_FILE}
            assert {path.name for path in (tmp_path / "out").iterdir()} == names
            assert {"onnxruntime", "openvino"} <= report.versions.keys()

    @pytest.mark.campaign
    @needs_onnx
    @needs_openvino
    def test_int8_for_batches_of_one_shape(self, model, tmp_path):
        options = ExportOptions("openvino", quantize="int8", batch_size=2)
        report = export_classifier(model, tmp_path / "out", options, images=torch.randn(7, 3, 32, 32))
        # of three that did not calibrate, a whole batch
        assert report.images.num_images == 2
        for images, message in [
            (torch.randn(8, 3, 32, 40), "`images` have 32x40 pixels; with `batch_size` 2 the program takes 32x32"),
            (torch.randn(3, 3, 32, 32), "`images` are 3; .* needs at least 4"),
        ]:
            with pytest.raises(ExportError, match=message):
                export_classifier(model, tmp_path / "other", options, images=images)

    @pytest.mark.campaign
    @needs_torchao
    def test_int8_in_pytorchs_format(self, tmp_path):
        torch.manual_seed(0)
        stage = {"hidden_sizes": [8], "depths": [1], "num_attention_heads": [1], "super_token_sizes": [2]}
        model = classifier(**stage, num_sampling_iterations=[1], use_layer_scale=[True])
        report = export_classifier(
            model, tmp_path / "out", ExportOptions("pt2", quantize="int8"), images=torch.randn(4, 3, 32, 32)
        )
        assert report.images.num_images == 4
        assert 1e-3 < report.images.mean_error < 0.1
        assert "torchao" in report.versions
        images = torch.randn(5, 3, 45, 18)
        with torch.no_grad():
            expected = quantize_for_inference(model)(images).logits
        # the program is the quantized copy, at a size that the export did not compare
        torch.testing.assert_close(load_program(tmp_path / "out")(images), expected, rtol=0, atol=1e-4)
