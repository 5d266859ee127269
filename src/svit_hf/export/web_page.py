# SPDX-License-Identifier: Apache-2.0
"""A static page beside an exported program, which runs it in the visitor's browser.

The page itself is in the folder `page`. ONNX Runtime Web, which it runs on, comes from its npm package at one version,
whose files are known by their SHA-256: it is larger than this package, so that it is not part of it, and a page that
loaded it from elsewhere would not work without that place, nor tell what it runs.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData
from transformers.image_utils import PILImageResampling, SizeDict

from svit_hf.errors import SViTError
from svit_hf.evaluation.preprocessing import input_format_of
from svit_hf.model.cells_svit import token_grids
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_transforms_svit import SViTImageProcessing, covered_area, size_in_pixels


RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_PACK = f"npm pack {RUNTIME}@{RUNTIME_VERSION}"

PAGE_FILES = Path(__file__).parent / "page"
# what the page resizes with, as Pillow does
_FILTERS = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}
# of a visitor's file, as in the demo
_LIMITS = {"maxBytes": 16 << 20, "maxPixels": 32_000_000}


@dataclass(frozen=True)
class WebPage:
    """Page that is written beside a program.

    Attributes:
        picture: How the page prepares a picture, in the words of `page/picture.mjs`.
        runtime: Content of the files of ONNX Runtime Web, by name.
    """

    picture: dict[str, Any]
    runtime: dict[str, bytes]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of what the model sees."""
        height, width = self.picture["crop"]
        return height, width

    def write(self, folder: Path, config: SViTConfig, title: str) -> None:
        """Write the page into the folder of a program that gives `associations`; nothing else stays there."""
        program, weights = "model.onnx", "model.onnx.data"
        for file in folder.iterdir():
            if file.name not in (program, weights):
                file.unlink()
        shutil.copytree(PAGE_FILES, folder, dirs_exist_ok=True)
        for name, content in self.runtime.items():
            (folder / name).write_bytes(content)
        num_bytes = sum((folder / file).stat().st_size for file in (program, weights))
        settings = {
            "name": title,
            "labels": list((config.id2label or {}).values()),
            "isMultiLabel": config.problem_type == "multi_label_classification",
            "picture": self.picture,
            "limits": _LIMITS,
            "stages": _stages(config, self.size),
            "model": {"program": program, "weights": weights, "megabytes": max(1, round(num_bytes / 1e6))},
        }
        (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(title), encoding="utf-8")


def prepare_page(config: SViTConfig, image_processor: Any, runtime: Path | None = None) -> WebPage:
    """Read what a page needs.

    Args:
        config: Of a classifier.
        image_processor: Of the model; the page prepares pictures as it does.
        runtime: The folder of the npm package `onnxruntime-web`, or the archive that `npm pack` writes; fetched with
            npm if `None`.

    Raises:
        SViTError: If the page cannot do what the image processor does, or a file of the runtime is missing or not the
            one that is known.
    """
    if not config.num_labels:
        raise SViTError("`model` has no classes, which a page would show.")
    return WebPage(_picture_settings(config, image_processor), _read_runtime(runtime))


def _picture_settings(config: SViTConfig, processor: Any) -> dict[str, Any]:
    if not isinstance(processor, SViTImageProcessing):
        found = "no image processor" if processor is None else f"the image processor {type(processor).__name__}"
        raise SViTError(
            f"`model` has {found}; a page prepares pictures as SViT's own do, such as SViTImageProcessorPil."
        )
    found_settings = {name: getattr(processor, name) for name in ("do_resize", "do_rescale", "do_normalize")}
    found_settings |= {"rescale_factor": processor.rescale_factor, "resample": processor.resample}
    if not (
        processor.do_resize
        and processor.do_rescale
        and processor.do_normalize
        and processor.rescale_factor == 1 / 255
        and processor.resample in _FILTERS
        and len(processor.image_mean) == config.num_channels
        and config.num_channels in (1, 3)
    ):
        raise SViTError(
            f"the image processor of `model` has the settings {found_settings}, and the model {config.num_channels} "
            "channels; a page resizes (resample 2 or 3), rescales by 1/255 and normalizes 1 or 3 channels."
        )
    crop, mean, std = input_format_of(processor)
    return {
        "covered": covered_area(size_in_pixels(SizeDict(**dict(processor.size))), processor.crop_pct),
        "crop": crop,
        "resample": _FILTERS[PILImageResampling(processor.resample)],
        "mean": mean,
        "std": std,
    }


def _stages(config: SViTConfig, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return, for each stage with super tokens, the output that has those of its last layer."""
    stages, num_layers = [], 0
    for number, (cell, depth, grid) in enumerate(
        zip(config.cell_sizes, config.depths, token_grids(size, config.num_stages), strict=True), 1
    ):
        if cell != (1, 1) and depth:
            num_layers += depth
            stages.append({"stage": number, "output": f"associations.{num_layers - 1}", "cell": cell, "grid": grid})
    return stages


def _read_runtime(source: Path | None) -> dict[str, bytes]:
    if source is None:
        with tempfile.TemporaryDirectory(prefix="svit-hf-") as folder:
            return _read_runtime(_fetch_runtime(Path(folder)))
    try:
        contents = _read_folder(source) if source.is_dir() else _read_archive(source)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise SViTError(
            f"`runtime` is {str(source)!r}, which cannot be read: {error}. It has to be the folder of {RUNTIME} "
            f"{RUNTIME_VERSION}, or the archive that `{_PACK}` writes."
        ) from error
    for name, content in contents.items():
        if (found := hashlib.sha256(content).hexdigest()) != RUNTIME_FILES[name]:
            raise SViTError(
                f"`runtime` is {str(source)!r}, whose {name} is another one than that of {RUNTIME} {RUNTIME_VERSION}: "
                f"its SHA-256 is {found}, expected is {RUNTIME_FILES[name]}. `{_PACK}` gets the right one."
            )
    return contents


def _read_folder(folder: Path) -> dict[str, bytes]:
    inside = folder / "dist" if (folder / "dist").is_dir() else folder
    return {name: (inside / name).read_bytes() for name in RUNTIME_FILES}


def _read_archive(file: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(file) as archive:
        for name in RUNTIME_FILES:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise KeyError(f"{name} is no file in it")
            contents[name] = member.read()
    return contents


def _fetch_runtime(folder: Path) -> Path:
    """Fetch the archive with npm, and return where it is."""
    npm = shutil.which("npm")
    if npm is None:
        raise SViTError(
            f"`runtime` is not given, and npm, which would fetch it, is not installed. Run `{_PACK}` wherever npm is, "
            f"and name the file that it writes: --runtime {RUNTIME}-{RUNTIME_VERSION}.tgz"
        )
    sys.stderr.write(f"fetching {RUNTIME} {RUNTIME_VERSION} with npm, 33 MB; --runtime names one that is here\n")
    command = [npm, *_PACK.split()[1:], "--silent", "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if result.returncode or not archives:
        said = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        raise SViTError(
            f"npm could not fetch {RUNTIME} {RUNTIME_VERSION}: {said}. Where npm has no network, run `{_PACK}` on "
            f"another machine, and name the file that it writes: --runtime {RUNTIME}-{RUNTIME_VERSION}.tgz"
        )
    return archives[0]


def _card(name: str) -> str:
    data = SpaceCardData(
        title=f"Super tokens: {name}",
        emoji="🔬",
        colorFrom="yellow",
        colorTo="red",
        sdk="static",
        app_file="index.html",
        license="unknown",
        short_description="What an SViT sees in a picture, in your browser",
        tags=["svit", "super-tokens", "image-classification", "interpretability"],
    )
    return f"""---
{data}
---

# Super tokens: {name}

An SViT classifies a picture in the visitor's browser, and shows the super tokens that it makes of it. The picture
stays on the visitor's machine, and nothing is loaded from anywhere but this folder. `python -m http.server` in this
folder serves the page at http://localhost:8000.

| Here | What it is |
|---|---|
| `index.html`, `page.css`, `*.mjs` | the page, of the package svit-hf, Apache License 2.0 |
| `model.onnx`, `model.onnx.data` | the model |
| `settings.json` | classes, and how pictures are prepared |
| `check.json` | how the program differs from the model |
| `ort.wasm.bundle.min.mjs`, `ort-wasm-simd-threaded.wasm` | ONNX Runtime Web {RUNTIME_VERSION}, MIT License |

The licence above is that of the model. State it before you make the Space public.
"""
