# SPDX-License-Identifier: Apache-2.0
"""A classifier becomes a folder with a program: exported by Transformers, loaded again, compared, or not written.

The folder is what Transformers' `ExportedModel.from_pretrained` loads: `model.pt2` or `model.onnx`, `export.json`,
`config.json`; or OpenVINO's `model.xml` and `model.bin`, and `config.json`. Beside them are
`preprocessor_config.json`, if there is an image processor, and `check.json`, what the comparison found. In the format
"web", a page (`web_page.py`) is in the folder too.
"""

import copy
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from packaging.version import Version
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from svit_hf.errors import SViTError
from svit_hf.export.check import Comparison, Predict, batches_of_many_sizes, compare, smallest_size
from svit_hf.export.loading import import_openvino, load_program
from svit_hf.export.web_page import WebPage, prepare_page
from svit_hf.extras import require_extra
from svit_hf.files import require_new_folder, whole_folder
from svit_hf.inference import quantize_for_inference
from svit_hf.inference.folding import fold_weights
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.dense_heads_svit import UperNetForSemanticSegmentation
from svit_hf.model.modeling_svit import SViTForImageClassification, SViTPreTrainedModel
from svit_hf.progress import Progress


FormatName = Literal["onnx", "openvino", "pt2", "web"]
QuantizeName = Literal["none", "int8"]

CHECK_FILE = "check.json"

# the release in which Transformers' exporters got programs that are saved, loaded and quantized
MIN_TRANSFORMERS = "5.23"

# float32 arithmetic in another order: 2.3e-6 was the worst seen, SViT-S with random weights, folded, in ONNX
FLOAT_TOLERANCE = 1e-4
# 8 bits are an approximation; beyond a quarter of the logits' mean size something is wrong with it
INT8_TOLERANCE = 0.25
_DEFAULT_TOLERANCE = {"none": FLOAT_TOLERANCE, "int8": INT8_TOLERANCE}

_IMAGES_PER_BATCH = 8
# what exporting takes on the disk at most: the program, its weights, and again while they are put together
DISK_SHARE, DISK_MARGIN = 3, 2**24


class ExportError(SViTError, ValueError):
    """Reason why a model was not exported."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Args:
        format: onnx for ONNX Runtime, openvino for OpenVINO, pt2 for torch.export.load, web for a static page: a
            picture in, classes and super tokens out, in the visitor's browser.
        quantize: int8 rounds weights and activations to 8 bits: in ONNX and OpenVINO of all convolutions and the
            classifier, in pt2 of projections and the classifier.
        fold: Fold batch norms, shortcuts and layer scales into convolutions, which saves passes over memory.
        image_size: Height and width, in pixels, around which the program is compared; by default the model's own. A
            page has the size of the image processor.
        opset: Version of the ONNX operators; by default the exporter's choice.
        tolerance: Largest difference of logits, absolute and relative to the largest; by default 1e-4. For int8 the
            mean difference on the pictures, relative to the mean logit; by default 0.25.
        batch_size: For OpenVINO, images of a call: the program then takes these alone, of `image_size`, and
            takes a tenth to a quarter less time.

    Raises:
        ExportError: If a value is not possible, or not with another.
    """

    format: FormatName = "onnx"
    quantize: QuantizeName = "none"
    fold: bool = True
    image_size: int | None = None
    opset: int | None = None
    tolerance: float | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in [("format", get_args(FormatName)), ("quantize", get_args(QuantizeName))]:
            if getattr(self, name) not in allowed:
                raise ExportError(f"`{name}` is {getattr(self, name)!r}; allowed are {', '.join(allowed)}.")
        if self.format not in ("onnx", "web") and self.opset is not None:
            raise ExportError(
                f"`opset` is {self.opset}; with `format` {self.format!r} there is none. Leave it out, or choose "
                "'onnx'."
            )
        if self.format == "web" and self.quantize == "int8":
            raise ExportError(f"`quantize` is 'int8'; with `format` {self.format!r} there is float32 alone.")
        if self.format == "web" and self.image_size is not None:
            raise ExportError(
                f"`image_size` is {self.image_size}; a page has the size that the model's image processor makes. "
                "Leave it out."
            )
        if self.batch_size is not None and (self.format != "openvino" or self.batch_size < 1):
            raise ExportError(
                f"`batch_size` is {self.batch_size} with `format` {self.format!r}; allowed is a number of at least 1, "
                "with 'openvino'."
            )
        if (self.format, self.quantize, self.fold) == ("pt2", "int8", False):
            raise ExportError("`fold` is False; int8 in `format` 'pt2' is always made of the folded model.")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ExportError(f"`tolerance` is {self.tolerance}; it has to be at least 0.")

    @property
    def is_onnx(self) -> bool:
        """Whether the program is one of ONNX, or made of one: OpenVINO reads in it how ONNX Runtime rounds."""
        return self.format in ("onnx", "web") or (self.format, self.quantize) == ("openvino", "int8")


@dataclass(frozen=True)
class ExportFolder:
    """Exported program, and how it was found to differ from the model.

    Attributes:
        output_dir: The folder.
        options: What was asked for.
        tolerance: Largest error that was allowed.
        sizes: The comparison on random batches of several lengths and image sizes.
        images: The comparison on pictures that did not calibrate the program, if it is quantized.
        num_bytes: Size of the program with its weights.
        seconds: What exporting and comparing took.
        versions: Of the packages that had a part in it.
    """

    output_dir: Path
    options: ExportOptions
    tolerance: float
    sizes: Comparison
    images: Comparison | None
    num_bytes: int
    seconds: float
    versions: dict[str, str]

    @property
    def error(self) -> float:
        """What is held against the tolerance: `sizes.max_error`, or `images.mean_error` of a quantized program."""
        return self.sizes.max_error if self.images is None else self.images.mean_error

    def to_json(self) -> str:
        """Return everything but the folder's name, which may change."""
        content = {name: value for name, value in asdict(self).items() if name != "output_dir"}
        return json.dumps(content | {"error": self.error}, indent=2) + "\n"


def export_classifier(
    model: SViTForImageClassification,
    output_dir: str | Path,
    options: ExportOptions | None = None,
    *,
    images: torch.Tensor | None = None,
    image_processor: BaseImageProcessor | None = None,
    runtime: Path | None = None,
) -> ExportFolder:
    """Export a classifier in float32, for any number of images of any size, and compare the program with the model.

    The program takes `pixel_values`, `(B, num_channels, height, width)`, and gives `logits`, `(B, num_labels)`. Height
    and width have to be at least `smallest_size`. The program of a page takes one image of one size, and gives
    `associations` too. The model is left as it is.

    Args:
        model: The model.
        output_dir: The folder to write; new or empty.
        options: What to export; ONNX in float32 by default.
        images: Preprocessed pictures, `(N, num_channels, height, width)`, for int8 and nothing else. Every second one
            calibrates, that is gives the ranges of activations, and the program is compared on the others. A `pt2`
            program finds ranges as it runs, and is compared on all of them.
        image_processor: What prepares the pictures; saved beside the program.
        runtime: Where ONNX Runtime Web is, for a page; see `prepare_page`.

    Returns:
        What was written and found.

    Raises:
        ExportError: If an argument cannot be used, or the program differs too much. Nothing is written then.
    """
    started = time.perf_counter()
    options = options or ExportOptions()
    _check_images(model.config, options, images)
    _check_installation(options)
    page = prepare_page(model.config, image_processor, runtime) if options.format == "web" else None
    size = _size_to_compare(model.config, options) if page is None else page.size
    if images is not None and options.batch_size is not None:
        _check_batches(images, options.batch_size, size)
    calibration, held_out = None, images
    if images is not None and options.is_onnx:
        calibration, held_out = images[::2], images[1::2]
    if held_out is not None and options.batch_size is not None:
        held_out = held_out[: len(held_out) // options.batch_size * options.batch_size]
    model = _copy(model)
    channels, least = model.config.num_channels, smallest_size(model.config, "pt2")
    if page is None:
        axes = {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=least),
            3: torch.export.Dim("width", min=least),
        }
        if options.batch_size is None:
            batches = batches_of_many_sizes(model.config, size, smallest_size(model.config, options.format))
        else:
            batches = _batches_of_one_size((options.batch_size,) * 2, channels, size)
        inputs = _Inputs(
            # several images, neither square nor of the size compared: nothing may be taken for a constant
            {"pixel_values": torch.zeros(2, channels, max(size[0], least) + 3, max(size[1], least) + 6)},
            {"pixel_values": axes},
            batches,
            calibration,
            held_out,
        )
    else:
        # one image of one size: a third fewer operators, and half the time to export
        sample = {"pixel_values": torch.zeros(1, channels, *size), "output_associations": True}
        inputs = _Inputs(sample, None, _batches_of_one_size((1, 1, 1), channels, size))
    return _export(model, _prepare(model, options), output_dir, options, inputs, image_processor, started, page)


def export_upernet(
    model: UperNetForSemanticSegmentation,
    output_dir: str | Path,
    options: ExportOptions | None = None,
    *,
    image_processor: BaseImageProcessor | None = None,
) -> ExportFolder:
    """Export UperNet on an SViT to ONNX in float32, for any number of images of its size, and compare the two.

    The program takes `pixel_values`, `(B, num_channels, height, width)`, and gives `logits`, `(B, num_labels, height,
    width)`. Its pooling has a window for each size, so that height and width are those of the backbone's config. The
    model is left as it is.

    Raises:
        ExportError: If an argument cannot be used, or the program differs too much. Nothing is written then.
    """
    # with the options of tasks comes what a command line needs; measuring forms of a classifier goes without
    from svit_hf.tasks.models import backbone_of

    started = time.perf_counter()
    options = options or ExportOptions()
    for name in ("format", "quantize", "image_size"):
        value, default = getattr(options, name), getattr(ExportOptions(), name)
        if value != default:
            raise ExportError(f"`{name}` is {value!r}; UperNet is exported to ONNX, in float32, at its own size.")
    _check_installation(options)
    model = _copy(model)
    config = backbone_of(model).config
    edges = (config.image_size,) * 2 if isinstance(config.image_size, int) else tuple(config.image_size)
    batches = _batches_of_one_size((1, 2, 3), config.num_channels, edges)
    inputs = _Inputs({"pixel_values": batches[1]}, {"pixel_values": {0: torch.export.Dim("batch")}}, batches)
    source = model
    if options.fold:
        source = copy.deepcopy(model)
        source.backbone = fold_weights(backbone_of(source))
    return _export(model, source, output_dir, options, inputs, image_processor, started)


@dataclass(frozen=True)
class _Inputs:
    """What a program is traced with, which axes of it may change, and what the program is compared on."""

    sample: dict[str, Any]
    variables: dict[str, Any] | None
    batches: list[torch.Tensor]
    calibration: torch.Tensor | None = None
    held_out: torch.Tensor | None = None


def _batches_of_one_size(lengths: tuple[int, ...], channels: int, size: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, channels, *size, generator=generator) for length in lengths]


def _copy(model: Any) -> Any:
    copied = copy.deepcopy(model).float().cpu().eval()
    for module in copied.modules():
        # of UperNet, which has no attention of its own, its SViT
        if isinstance(module, SViTPreTrainedModel):
            module.set_attn_implementation("sdpa")
    return copied


def _export(
    model: Any,
    source: PreTrainedModel,
    output_dir: str | Path,
    options: ExportOptions,
    inputs: _Inputs,
    image_processor: BaseImageProcessor | None,
    started: float,
    page: WebPage | None = None,
) -> ExportFolder:
    """Write the program of `source`, and compare it with `model`."""
    num_bytes = DISK_SHARE * sum(tensor.nbytes for tensor in source.state_dict().values()) + DISK_MARGIN
    with Progress(3, "steps") as progress, _new_folder(Path(output_dir).absolute(), num_bytes) as folder:
        progress.note("tracing and translating the model, which takes minutes for a large one")
        with exporters_to_stderr():
            _write_program(source, folder, options, inputs)
            progress.advance()
            progress.note("loading the program")
            program = load_program(folder)
        progress.advance()
        progress.note("comparing it with the model")
        if image_processor is not None:
            image_processor.save_pretrained(folder)
        with torch.no_grad():
            sizes = compare(program, predict_with(model), inputs.batches)
            on_images = None
            if inputs.held_out is not None:
                batches = inputs.held_out.split(options.batch_size or _IMAGES_PER_BATCH)
                on_images = compare(program, predict_with(model), batches)
        tolerance = _DEFAULT_TOLERANCE[options.quantize] if options.tolerance is None else options.tolerance
        report = ExportFolder(
            output_dir=Path(output_dir),
            options=options,
            tolerance=tolerance,
            sizes=sizes,
            images=on_images,
            num_bytes=sum(file.stat().st_size for file in folder.glob("model.*")),
            seconds=time.perf_counter() - started,
            versions={name: version(name) for name in _packages(options)},
        )
        _check_result(report)
        if page is not None:
            page.write(folder, model.config, Path(output_dir).absolute().name)
        (folder / CHECK_FILE).write_text(report.to_json(), encoding="utf-8")
    return report


def predict_with(model: PreTrainedModel) -> Predict:
    """Return a function from images to the model's logits."""
    return lambda pixel_values: model(pixel_values).logits


def _prepare(model: SViTForImageClassification, options: ExportOptions) -> SViTForImageClassification:
    """Return what is exported; an ONNX program is quantized afterwards, as a graph."""
    if options.format == "pt2" and options.quantize == "int8":
        return quantize_for_inference(model)
    return fold_weights(model) if options.fold else model


@contextmanager
def _new_folder(output_dir: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `output_dir` if the block ends without an error."""
    require_new_folder(output_dir, "output_dir")
    try:
        free = shutil.disk_usage(output_dir.parent).free
        # asked before: PyTorch's writer ends the whole process where a disk is full
        if free < num_bytes:
            raise ExportError(
                f"`output_dir` is {str(output_dir)!r}, on a disk with {free / 1e6:,.0f} MB left; exporting this model "
                f"takes up to {num_bytes / 1e6:,.0f} MB. Make room, or name a folder on another disk."
            )
        with whole_folder(output_dir) as folder:
            yield folder
    except OSError as error:
        raise ExportError(f"`output_dir` is {str(output_dir)!r}, which cannot be written: {error}") from error


def _write_program(model: PreTrainedModel, folder: Path, options: ExportOptions, inputs: _Inputs) -> None:
    """Export with Transformers, and save what it made of the model."""
    from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter

    config = model.config
    sample, dynamic_shapes = inputs.sample, inputs.variables
    if not options.is_onnx:
        exporter = DynamoExporter()
        if options.quantize == "int8":
            # goes into export.json, where `load_program` finds what the program needs
            exporter.required_packages = [*exporter.required_packages, "torchao"]
        exported = exporter.export(model, sample, DynamoConfig(dynamic_shapes=dynamic_shapes))
    else:
        quantizer = None if inputs.calibration is None else _int8_quantizer(inputs.calibration)
        settings = OnnxConfig(dynamic_shapes=dynamic_shapes, opset_version=options.opset, quantizer=quantizer)
        exported = OnnxExporter().export(model, sample, settings)
        # in the order of the classes, which is that of the config
        labels = list((config.id2label or {}).values())
        exported.program.metadata_props["labels"] = json.dumps(labels)
        # where in which file of this machine each operator came from
        for node in exported.program.graph.all_nodes():
            node.metadata_props.clear()
    if options.format == "openvino":
        _save_openvino(exported, folder, options, list(inputs.batches[0].shape))
        config.save_pretrained(folder)
    else:
        exported.save_pretrained(folder)


def _save_openvino(exported: Any, folder: Path, options: ExportOptions, shape: list[int]) -> None:
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(dir=folder) as onnx_folder:
        source = exported.program
        if options.is_onnx:
            exported.save_pretrained(onnx_folder)
            source = Path(onnx_folder) / "model.onnx"
        converted = openvino.convert_model(source)
        if options.batch_size is not None:
            converted.reshape(shape)
        for ports, name in ((converted.inputs, "pixel_values"), (converted.outputs, "logits")):
            ports[0].get_tensor().set_names({name})
        # by default it rounds the weights to 16 bits
        openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _int8_quantizer(calibration: torch.Tensor) -> Any:
    from onnxruntime.quantization import QuantType
    from transformers.exporters import OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    settings = OnnxRuntimeStaticConfig(
        # attention, norms and the super-token arithmetic stay in float32
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        # the pair that ONNX Runtime has its fast kernels for: signed weights, unsigned activations
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        # 7 bits for weights: the products of 8-bit ones overflow on processors without VNNI
        reduce_range=True,
    )
    return OnnxRuntimeQuantizer(settings, [{"pixel_values": image.unsqueeze(0)} for image in calibration])


@contextmanager
def exporters_to_stderr() -> Iterator[None]:
    """Send what exporters print to stderr, and leave out warnings about code that is not the user's."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        # PyTorch's own use of what it deprecates, in exporters and when it copies a graph
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _packages(options: ExportOptions) -> tuple[str, ...]:
    packages = ["torch", "transformers"]
    if options.is_onnx:
        packages += ["onnx", "onnxscript", "onnxruntime"]
    if options.format == "openvino":
        packages.append("openvino")
    elif options.format == "pt2" and options.quantize == "int8":
        packages.append("torchao")
    return tuple(packages)


def _size_to_compare(config: SViTConfig, options: ExportOptions) -> tuple[int, int]:
    size = config.image_size if options.image_size is None else options.image_size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    least = smallest_size(config, options.format)
    if min(height, width) < least:
        raise ExportError(
            f"`image_size` is {height}x{width}; in format {options.format!r} the model takes at least "
            f"{least}x{least} pixels."
        )
    return height, width


def _check_images(config: SViTConfig, options: ExportOptions, images: torch.Tensor | None) -> None:
    if (options.quantize == "int8") != (images is not None):
        given = "none" if images is None else len(images)
        raise ExportError(
            f"`quantize` is {options.quantize!r}, `images` are {given}; int8 needs pictures to be calibrated with and "
            "compared on, and nothing else does."
        )
    if images is not None and (images.ndim != 4 or images.shape[1] != config.num_channels or len(images) < 2):
        raise ExportError(
            f"`images` has shape {tuple(images.shape)}; expected is (N, {config.num_channels}, height, width), N at "
            "least 2."
        )


def _check_batches(images: torch.Tensor, batch_size: int, size: tuple[int, ...]) -> None:
    if tuple(images.shape[2:]) != size:
        raise ExportError(
            f"`images` have {images.shape[2]}x{images.shape[3]} pixels; with `batch_size` {batch_size} the program "
            f"takes {size[0]}x{size[1]} alone. Choose another `image_size`, or leave `batch_size` out."
        )
    if len(images) < 2 * batch_size:
        raise ExportError(
            f"`images` are {len(images)}; every second one calibrates, so that comparing batches of {batch_size} "
            f"needs at least {2 * batch_size}."
        )


def _check_installation(options: ExportOptions) -> None:
    installed = version("transformers")
    if Version(installed) < Version(MIN_TRANSFORMERS):
        raise ExportError(
            f"export needs transformers {MIN_TRANSFORMERS} or newer; installed is {installed}, whose exporters are "
            "missing or cannot save what they export."
        )
    if options.is_onnx:
        require_extra("export", "export")
    if options.format == "openvino":
        require_extra("openvino", "export --format openvino")
    elif options.format == "pt2" and options.quantize == "int8":
        require_extra("quantization", "export --format pt2 --quantize int8")


def _check_result(report: ExportFolder) -> None:
    # a NaN is no error below anything
    if not report.error <= report.tolerance:
        kind = "mean relative difference on the pictures" if report.images else "largest difference of logits"
        raise ExportError(
            f"the exported program is not the model: {kind} {report.error:.2e}, `tolerance` {report.tolerance:.2e}. "
            "Nothing was written."
        )
