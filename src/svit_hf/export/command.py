# SPDX-License-Identifier: Apache-2.0
"""`svit-hf export`: a classifier, or UperNet, becomes a program that runs without its code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from transformers.image_processing_utils import BaseImageProcessor

from svit_hf.data.decoding import DecodingError, decode_image
from svit_hf.data.folders import picture_files
from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import find_model, load_classifier, load_image_processor
from svit_hf.export.exporting import (
    CHECK_FILE,
    ExportError,
    ExportFolder,
    ExportOptions,
    export_classifier,
    export_upernet,
)
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.tasks.saved_models import dense_head, open_task_model


@dataclass
class ExportCommand:
    """Export a classifier to ONNX, OpenVINO or PyTorch's own format, or as a page that runs it in the browser.

    A program takes any number of images of any size, unless --batch-size fixes both. It is loaded again and compared
    with the model on batches of several lengths and image sizes. If it differs by more than the tolerance, nothing is
    written and the exit status is not 0. Exporting SViT-S takes a few minutes. UperNet on an SViT is exported to ONNX,
    for images of its own size.

    Args:
        model: A folder with config.json and weights, the folder of a training run, or the name of a model on the Hub.
        output_dir: The folder to write; new or empty.
        calibration: A folder of pictures like those that the model is for. Every second one calibrates int8, and the
            others tell what it changes; in pt2, which needs no calibration, all of them do that.
        num_pictures: Pictures to take from this folder, evenly spread.
        runtime: For a page: folder of the npm package onnxruntime-web, or the archive that `npm pack` writes. Without
            it, npm fetches the package.
        options: What to export, and how.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT_DIR")]
    calibration: Path | None = None
    num_pictures: int = 128
    runtime: Path | None = None
    options: Annotated[ExportOptions, tyro.conf.arg(name="")] = field(default_factory=ExportOptions)

    def run(self) -> int:
        """Export, say what was found, and return the exit status.

        Raises:
            ExportError: If something does not fit, or the program differs too much; nothing is written then.
        """
        options = self.options
        if (options.quantize == "int8") != (self.calibration is not None):
            raise ExportError(
                f"`quantize` is {options.quantize!r} and `calibration` is {str(self.calibration)!r}; int8 needs a "
                "folder of pictures to be calibrated with and compared on, and nothing else does."
            )
        if self.runtime is not None and options.format != "web":
            raise ExportError(f"`runtime` is {str(self.runtime)!r}; with `format` {options.format!r} there is none.")
        location = find_model(self.model)
        if (head := dense_head(location)) is not None:
            if self.calibration is not None or head.name != "upernet":
                raise ExportError(
                    f"`model` is {self.model!r}, with the head {head.name!r}; of the heads for segmentation and "
                    "detection 'upernet' is exported, in float32."
                )
            opened = open_task_model(location)
            network: Any = opened.model
            report = export_upernet(network, self.output_dir, options, image_processor=opened.task.processor)
            print(f"{_summary(report)}\n\n{_what_next(report)}")  # noqa: T201 - a program's result
            return 0
        model, processor = _load_model(location), _load_image_processor(location)
        images = None
        if self.calibration is not None:
            if processor is None:
                raise ExportError(f"`model` is {self.model!r}, which has no image processor to prepare pictures with.")
            images = read_pictures(self.calibration, processor, self.num_pictures)
        report = export_classifier(
            model, self.output_dir, options, images=images, image_processor=processor, runtime=self.runtime
        )
        print(f"{_summary(report)}\n\n{_what_next(report)}")  # noqa: T201 - a program's result
        return 0


def read_pictures(folder: Path, image_processor: BaseImageProcessor, num_pictures: int) -> torch.Tensor:
    """Read pictures from a folder and those in it, evenly spread over their sorted names.

    Returns:
        Shape `(N, C, height, width)`.

    Raises:
        SViTError: If the folder holds fewer than two pictures, or one that cannot be read.
    """
    if num_pictures < 2:
        raise SViTError(f"`num_pictures` is {num_pictures}; it has to be at least 2.")
    paths = picture_files(str(folder)) if folder.is_dir() else []
    if len(paths) < 2:
        raise SViTError(f"`calibration` is {str(folder)!r}, a folder with {len(paths)} pictures; it needs at least 2.")
    places = np.linspace(0, len(paths) - 1, min(num_pictures, len(paths))).round().astype(int)
    prepared = []
    for path in (paths[place] for place in places):
        try:
            pixel_values = image_processor(decode_image(path), return_tensors="pt")["pixel_values"]
        except DecodingError as error:
            raise SViTError(f"`calibration` holds {path!r}, which cannot be read: {error}") from error
        prepared.append(pixel_values)
    return torch.cat(prepared)


def _load_model(location: str) -> SViTForImageClassification:
    model = load_classifier(location, "cpu")
    if not isinstance(model, SViTForImageClassification):
        raise ExportError(f"`model` is {location!r}, a {model.config.model_type} model; expected is svit.")
    return model


def _load_image_processor(location: str) -> BaseImageProcessor | None:
    try:
        processor: BaseImageProcessor = load_image_processor(location)
    except SViTError as error:
        # a model without one is still a model
        if isinstance(error.__cause__, OSError):
            return None
        raise
    return processor


def _summary(report: ExportFolder) -> str:
    options = report.options
    sizes = ", ".join("x".join(map(str, (shape[0], *shape[2:]))) for shape in report.sizes.shapes)
    lines = {
        "written to": report.output_dir,
        "program": f"{options.format}, {'float32' if options.quantize == 'none' else options.quantize}, "
        f"{report.num_bytes / 1e6:.2f} MB",
        "compared on": f"batches of {sizes} pixels",
        "largest difference": f"{report.sizes.max_difference:.2e}, the largest logit being "
        f"{report.sizes.max_logit:.2e}",
    }
    if report.images is not None:
        lines |= {
            "compared on pictures": f"{report.images.num_images}, none of which calibrated",
            "  largest difference": f"{report.images.max_difference:.3f}, the largest logit being "
            f"{report.images.max_logit:.3f}",
            "  mean difference": f"{report.images.mean_difference:.3f}, {100 * report.images.mean_error:.1f} % of the "
            "mean logit",
            "  unchanged top-1": f"{100 * report.images.unchanged_top1:.1f} %",
        }
    lines |= {
        "tolerance": f"{report.tolerance:.2e}; found {report.error:.2e}, see {CHECK_FILE}",
        "time": f"{report.seconds:.0f} s",
    }
    return "\n".join(f"{name:<22} {value}" for name, value in lines.items())


def _what_next(report: ExportFolder) -> str:
    folder = report.output_dir
    loading = {
        "onnx": f'onnxruntime.InferenceSession("{folder}/model.onnx")',
        "openvino": f'openvino.compile_model("{folder}/model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        "pt2": f'torch.export.load("{folder}/model.pt2").module()  # after `import svit_hf`',
    }
    if (line := loading.get(report.options.format)) is not None:
        return f"It takes pixel_values, and gives logits. In Python, this loads it:\n\n    {line}"
    return f"""Look at the page at http://localhost:8000, while this runs:

    python -m http.server -d {folder}

Any web server can serve the folder; so can the Hub, after you have stated the licence of the model in its README.md:

    hf repos create USER/NAME --repo-type space --space-sdk static
    hf upload USER/NAME {folder} . --repo-type space"""
