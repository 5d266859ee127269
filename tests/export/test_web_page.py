# SPDX-License-Identifier: Apache-2.0
"""The page that runs an exported program in the browser: what is written, what is refused, what Chromium makes of it.

Chromium runs the program where scripts/environment.sh could put the archive of ONNX Runtime Web into the environment.
"""

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from browser import NEEDS_CHROMIUM, keep_screenshot, open_page
from huggingface_hub import metadata_load
from PIL import Image
from tiny import tiny_config
from transformers import ViTImageProcessorPil

from svit_hf import SViTConfig, SViTForImageClassification, SViTImageProcessorPil, save_with_code
from svit_hf.cli import main
from svit_hf.errors import SViTError
from svit_hf.export import web_page
from svit_hf.export.exporting import FLOAT_TOLERANCE, ExportOptions, export_classifier
from svit_hf.export.web_page import PAGE_FILES, RUNTIME, RUNTIME_FILES, RUNTIME_VERSION, WebPage, prepare_page
from svit_hf.visualization.super_tokens import assign_places


ARCHIVE = Path(sys.prefix, f"{RUNTIME}-{RUNTIME_VERSION}.tgz")
# of 255: float32 and nothing else; 3e-5 was the worst seen
PIXEL_TOLERANCE = 1e-4

PREPARE = """async ([address, settings]) => {
    const { prepare, readPicture } = await import("/picture.mjs");
    const picture = await readPicture(await (await fetch(address)).blob(), { maxBytes: 1e9, maxPixels: 1e9 });
    return [[...prepare(picture, settings).pixelValues], picture.isBlended];
}"""


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Return a folder with the files of a runtime, whose content is not that of the real one."""
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in RUNTIME_FILES:
        (folder / name).write_bytes(name.encode())
    known = {name: hashlib.sha256(name.encode()).hexdigest() for name in RUNTIME_FILES}
    monkeypatch.setattr(web_page, "RUNTIME_FILES", known)
    return folder.parent


@contextmanager
def serving(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_program(folder):
    folder.mkdir()
    for name in ("model.onnx", "model.onnx.data", "config.json"):
        (folder / name).write_bytes(b"0" * 1_000_000)
    return folder


def test_page_is_complete(tmp_path, runtime):
    config = tiny_config(num_labels=2, id2label={0: "<b>", 1: "Zürich"}, problem_type="multi_label_classification")
    processor = SViTImageProcessorPil(size={"height": 64, "width": 48}, crop_pct=0.5, image_std=[0.2, 0.3, 0.4])
    page = prepare_page(config, processor, runtime)
    page.write(write_program(tmp_path / "page"), config, "flowers")

    assert {file.name for file in (tmp_path / "page").iterdir()} == {
        *("README.md", "index.html", "page.css", "page.mjs", "picture.mjs", "super_tokens.mjs", "settings.json"),
        *("model.onnx", "model.onnx.data", *RUNTIME_FILES),
    }
    settings = json.loads((tmp_path / "page/settings.json").read_text())
    assert settings["labels"] == ["<b>", "Zürich"]
    assert settings["isMultiLabel"]
    assert settings["model"]["megabytes"] == 2
    assert settings["picture"] | {"mean": None} == {
        **{"covered": [128, 96], "crop": [64, 48], "resample": "bicubic", "mean": None, "std": [0.2, 0.3, 0.4]}
    }
    # of one and two layers, the last of each stage
    assert settings["stages"] == [
        {"stage": 1, "output": "associations.0", "cell": [4, 4], "grid": [16, 12]},
        {"stage": 2, "output": "associations.2", "cell": [2, 2], "grid": [8, 6]},
    ]
    card = metadata_load(tmp_path / "page/README.md")
    assert (card["sdk"], card["app_file"], card["license"]) == ("static", "index.html", "unknown")
    for name in RUNTIME_FILES:
        assert (tmp_path / "page" / name).read_bytes() == name.encode()


def test_archive_does_as_well_as_its_folder(tmp_path, runtime):
    with tarfile.open(tmp_path / "runtime.tgz", "w:gz") as archive:
        archive.add(runtime, "package")
    from_archive = prepare_page(tiny_config(), SViTImageProcessorPil(), tmp_path / "runtime.tgz")
    assert from_archive == prepare_page(tiny_config(), SViTImageProcessorPil(), runtime)


def test_other_runtime_is_refused(tmp_path, runtime):
    with pytest.raises(SViTError, match=r"which cannot be read.*`npm pack onnxruntime-web@"):
        prepare_page(tiny_config(), SViTImageProcessorPil(), tmp_path / "nowhere")
    changed = next(iter(runtime.rglob("*.mjs")))
    changed.write_text("worse")
    with pytest.raises(SViTError, match=f"whose {changed.name} is another one than that of onnxruntime-web 1"):
        prepare_page(tiny_config(), SViTImageProcessorPil(), runtime)


@pytest.mark.parametrize("script", [None, "echo no network >&2; exit 1", 'cp "$SOURCE" "$5"'])
def test_npm_fetches_the_runtime(tmp_path, runtime, monkeypatch, script, capsys):
    with tarfile.open(tmp_path / "runtime.tgz", "w:gz") as archive:
        archive.add(runtime, "package")
    (tmp_path / "bin").mkdir()
    if script is not None:
        (tmp_path / "bin/npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin/npm").chmod(0o755)
    monkeypatch.setenv("SOURCE", str(tmp_path / "runtime.tgz"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + (f":{os.environ['PATH']}" if script else ""))
    if script and "cp" in script:
        page = prepare_page(tiny_config(), SViTImageProcessorPil())
        assert page.runtime == prepare_page(tiny_config(), SViTImageProcessorPil(), runtime).runtime
        assert "fetching onnxruntime-web 1.30.0 with npm" in capsys.readouterr().err
        return
    problem = "npm could not fetch .*: no network" if script else "npm, which would fetch it, is not installed"
    with pytest.raises(SViTError, match=f"{problem}.*`npm pack onnxruntime-web@1.30.0`.*--runtime onnxruntime-web-1"):
        prepare_page(tiny_config(), SViTImageProcessorPil())


@pytest.mark.parametrize(
    ("config", "processor", "problem"),
    [
        ({"num_labels": 0}, SViTImageProcessorPil(), "has no classes"),
        ({}, None, "no image processor"),
        ({}, ViTImageProcessorPil(), "the image processor ViTImageProcessorPil"),
        ({}, SViTImageProcessorPil(do_resize=False), "'do_resize': False"),
        ({}, SViTImageProcessorPil(resample=0), "'resample': 0"),
        ({}, SViTImageProcessorPil(rescale_factor=1 / 65535), "'rescale_factor': 1.5"),
        ({"num_channels": 4}, SViTImageProcessorPil(image_mean=[0.5] * 4, image_std=[0.5] * 4), "4 channels"),
    ],
)
def test_what_a_page_cannot_do_is_refused(runtime, config, processor, problem):
    with pytest.raises(SViTError, match=problem):
        prepare_page(tiny_config(**config), processor, runtime)


def test_runtime_is_for_pages_alone(tmp_path, capsys):
    assert main(["export", "model", str(tmp_path / "out"), "--runtime", "here"]) == 2
    assert "`runtime` is 'here'; with `format` 'onnx' there is none" in capsys.readouterr().err


def stored(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.process
class TestInBrowser:
    pytestmark = NEEDS_CHROMIUM

    def test_pictures_are_prepared_as_by_the_image_processor(self):
        generator = np.random.default_rng(0)
        noise = Image.fromarray(generator.integers(0, 256, (181, 237, 3), dtype=np.uint8))
        smooth = noise.resize((9, 7)).resize((260, 190), Image.Resampling.BICUBIC)
        transparent = noise.copy()
        transparent.putalpha(Image.fromarray(generator.integers(0, 256, (181, 237), dtype=np.uint8)))
        turned = Image.Exif()
        turned[0x112] = 6
        files = {
            "colours": stored(noise, "PNG"),
            "grey": stored(noise.convert("L"), "PNG"),
            "palette": stored(smooth.quantize(64), "PNG"),
            "transparent": stored(transparent, "PNG"),
            "enlarged": stored(noise.crop((0, 0, 31, 45)), "PNG"),
            "photograph": stored(smooth, "JPEG"),
            "turned": stored(smooth, "JPEG", exif=turned),
            "print": stored(smooth.convert("CMYK"), "JPEG"),
        }
        processors = [
            SViTImageProcessorPil(size={"shortest_edge": 64}),
            SViTImageProcessorPil(size={"height": 96, "width": 61}, crop_pct=1.0, resample=2),
            # the second of the two is larger than what is resized
            SViTImageProcessorPil(
                size={"shortest_edge": 64}, do_center_crop=True, crop_size={"height": 57, "width": 130}
            ),
            SViTImageProcessorPil(size={"shortest_edge": 64}, image_mean=[0.4], image_std=[0.2]),
        ]
        with serving(PAGE_FILES) as address, open_page() as page:
            page.goto(f"{address}/page.css")
            for processor in processors:
                config = SViTConfig(num_channels=len(processor.image_mean))
                settings = web_page._picture_settings(config, processor)
                for name, content in files.items():
                    data = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
                    values, is_blended = page.evaluate(PREPARE, [data, settings])
                    expected = processor(Image.open(io.BytesIO(content)), return_tensors="np")["pixel_values"][0]
                    differences = np.abs(np.reshape(values, expected.shape) - expected) * 255 * processor.image_std[0]
                    assert differences.max() < PIXEL_TOLERANCE, (name, processor.size)
                    assert not is_blended
            assert page.foreign == []

    @pytest.mark.skipif(not ARCHIVE.exists(), reason=f"there is no {ARCHIVE.name} in {sys.prefix}: npm was not there")
    def test_a_visit(self, tmp_path, capsys):
        labels = {"id2label": dict(enumerate(["<b>cat", "dog", "hen", "cow", "pig"]))}
        two_stages = {"hidden_sizes": [8, 12], "depths": [2, 1], "num_attention_heads": [1, 2]}
        two_stages |= {
            "super_token_sizes": [4, 1],
            "num_sampling_iterations": [2, 1],
            "use_layer_scale": [False, True],
        }
        model = SViTForImageClassification(tiny_config(**two_stages, **labels)).eval()
        with torch.no_grad():
            model.classifier.weight.mul_(50)
        save_with_code(model, tmp_path / "tiny")
        target = str(tmp_path / "page")
        assert main(["export", str(tmp_path / "tiny"), target, "--format", "web", "--runtime", str(ARCHIVE)]) == 0
        assert f"python -m http.server -d {target}" in capsys.readouterr().out
        for file in (tmp_path / "page").iterdir():
            assert str(Path(web_page.__file__).parents[1]).encode() not in file.read_bytes(), file.name

        picture = Image.linear_gradient("L").rotate(30).resize((90, 60))
        picture = Image.merge("RGB", [picture, picture.transpose(Image.Transpose.ROTATE_180), picture])
        picture.save(tmp_path / "picture.png")
        (tmp_path / "bad.png").write_text("no picture")
        Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
        (tmp_path / "large.png").write_bytes(b"0" * ((16 << 20) + 1))
        with serving(tmp_path / "page") as address, open_page() as page:
            page.goto(address)
            page.wait_for_selector("#file:enabled", state="attached")
            # where the model runs, so that the page does not freeze meanwhile
            assert [worker.url for worker in page.workers] == [f"{address}/ort.wasm.bundle.min.mjs"]
            page.locator("#file").set_input_files(tmp_path / "picture.png")
            page.wait_for_selector("#numbers:visible")
            answers = page.locator("#answer li .label").all_inner_texts()
            with page.expect_download() as download:
                page.locator("#numbers").click()
            numbers = json.loads(Path(download.value.path()).read_text())
            keep_screenshot(page, tmp_path, "web-page")
            for name, problem in [
                ("bad.png", "it is no picture"),
                ("deep.png", "16 bits"),
                ("large.png", "This file has 17 MB; the page takes 17."),
            ]:
                page.locator("#file").set_input_files(tmp_path / name)
                page.wait_for_selector(f"#message.error:has-text('{problem}')")
                assert page.locator("#answer li, #drawings canvas, #numbers:visible").count() == 0
            page.locator("#file").set_input_files(tmp_path / "picture.png")
            page.wait_for_selector("#drawings canvas")
            assert page.foreign == []

        processor = SViTImageProcessorPil.from_pretrained(tmp_path / "tiny")
        with torch.no_grad():
            outputs = model(processor(picture, return_tensors="pt")["pixel_values"], output_associations=True)
        assert outputs.logits.abs().max() > 0.1
        assert numbers["logits"] == pytest.approx(outputs.logits[0].tolist(), abs=FLOAT_TOLERANCE)
        assert answers == [numbers["labels"][index] for index in outputs.logits[0].argsort(descending=True)]
        assert numbers["shares"] == pytest.approx(outputs.logits[0].softmax(0).tolist(), abs=FLOAT_TOLERANCE)
        [super_tokens] = numbers["superTokens"]
        expected = assign_places(outputs.associations[1][0], (4, 4), (16, 16), (64, 64)).flatten()
        assert len(expected.unique()) > 5
        # float32 here and 64 bits there decide pixels with two equal shares differently
        assert (torch.tensor(super_tokens["ofPixels"]) == expected).float().mean() > 0.999


# Transformers that is too old for any export is told so first
@pytest.mark.newest
def test_page_that_cannot_be_made_costs_no_export(tmp_path, runtime):
    with pytest.raises(SViTError, match="no image processor"):
        export_classifier(SViTForImageClassification(tiny_config()), tmp_path / "out", ExportOptions("web"))
    assert not (tmp_path / "out").exists()
    assert isinstance(prepare_page(tiny_config(), SViTImageProcessorPil(), runtime), WebPage)
