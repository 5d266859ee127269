# SPDX-License-Identifier: Apache-2.0
"""From an official `.pth` checkpoint to a folder that Transformers loads: read safely, infer, check, compare, write.

Nothing in the checkpoint is executed, nothing is skipped in silence, and nothing is written before every check passed.

Source: format and key names of hhb072/STViT@c9ed9a4; see `key_mapping.py`.
"""

import argparse
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch

from svit_hf.convert.architecture import VariantName, find_variant, infer_config
from svit_hf.convert.key_mapping import is_dropped, official_shape, to_official, to_ours
from svit_hf.errors import ConversionError
from svit_hf.files import files_into
from svit_hf.hub.remote_code import default_image_processor
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.modeling_svit import SViTForImageClassification


WeightsName = Literal["model", "model_ema"]

REFERENCE_TOLERANCE = 1e-5
# of a name in a message
MAX_KEY_LENGTH = 100


class OfficialWeights(NamedTuple):
    """One set of official weights, and where in the file it was.

    Attributes:
        state_dict: Tensors under their official names.
        source: `"model"` or `"model_ema"`, or `"state dict"` for a file without a wrapper.
    """

    state_dict: dict[str, torch.Tensor]
    source: str


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_official_checkpoint` took and wrote.

    Attributes:
        output_dir: The folder that was written.
        source: Which weights were taken, see `OfficialWeights`.
        variant: The published model that has these widths and depths, if there is one.
        config: Configuration of the converted model.
        num_parameters: Learned numbers, batch statistics not counted.
        dropped: Official tensors left behind on purpose, by name.
        reference_error: Relative error of the logits against the reference, or `None` without a reference.
    """

    output_dir: Path
    source: str
    variant: str | None
    config: SViTConfig
    num_parameters: int
    dropped: tuple[str, ...]
    reference_error: float | None


def convert_official_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    weights: WeightsName = "model",
    variant: VariantName = "auto",
    config: Mapping[str, Any] | None = None,
    reference: str | Path | None = None,
    tolerance: float = REFERENCE_TOLERANCE,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert an official checkpoint to a folder with config, weights and preprocessing that the Auto classes load.

    Args:
        checkpoint: The official `.pth` file.
        output_dir: The folder to write; it has to be new or empty, unless `overwrite` is set.
        weights: The weights to take, the trained ones or their moving average. Never chosen for you.
        variant: Where heads, cells and iterations come from; `"auto"` recognises a published model by its widths and
            depths.
        config: Fields of `SViTConfig` that win over everything read off the checkpoint. Preprocessing follows from
            `image_size`, 224 pixels unless it is here; `id2label` names the classes.
        reference: A safetensors file with `pixel_values` and the `logits` that they have to give.
        tolerance: Largest relative error of these logits, in norm.
        overwrite: Whether files of the same names in `output_dir` are replaced; others stay.

    Returns:
        What was taken and written.

    Raises:
        ConversionError: If anything does not fit; the message lists what. Nothing is written then.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite):
        raise ConversionError(f"`output_dir` is {str(output_dir)!r}, which is in use; give another, or `overwrite`.")
    official = load_official_checkpoint(checkpoint, weights)
    svit_config = infer_config(official.state_dict, variant, config)
    model = build_model(official.state_dict, svit_config)
    report = ConversionReport(
        output_dir=output_dir,
        source=official.source,
        variant=find_variant(svit_config.hidden_sizes, svit_config.depths),
        config=svit_config,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dropped=tuple(key for key in official.state_dict if is_dropped(key)),
        reference_error=None if reference is None else compare_with_reference(model, reference, tolerance),
    )
    _write(model, output_dir)
    return report


def load_official_checkpoint(checkpoint: str | Path, weights: WeightsName = "model") -> OfficialWeights:
    """Read one set of weights from an official file, without executing any of it.

    Tensors, plain containers and `argparse.Namespace` are allowed in the file, nothing else, whatever other libraries
    have declared safe.

    Args:
        checkpoint: A file with the weights under `model` and perhaps `model_ema`, or with nothing but the weights.
        weights: The set to take. A file with nothing but weights holds `model`.

    Returns:
        The weights, under their official names.

    Raises:
        ConversionError: If the file cannot be read, holds anything else, or does not hold these weights.
    """
    content = _unpickle(Path(checkpoint))
    if not isinstance(content, dict):
        raise ConversionError(f"{str(checkpoint)!r} holds a {type(content).__name__}; expected is a dict of weights.")
    wrapped = [name for name in ("model", "model_ema") if isinstance(content.get(name), dict)]
    if weights in wrapped:
        state_dict, source = content[weights], str(weights)
    elif wrapped:
        raise ConversionError(
            f"{str(checkpoint)!r} has no weights under `{weights}`, only under `{wrapped[0]}`; ask for these instead."
        )
    elif weights == "model":
        state_dict, source = content, "state dict"
    else:
        raise ConversionError(
            f"{str(checkpoint)!r} has no weights under `{weights}`; its first keys are {list(content)[:5]}."
        )
    foreign = {key: value for key, value in state_dict.items() if not _is_named_tensor(key, value)}
    if foreign or not state_dict:
        raise ConversionError(
            f"The weights of {str(checkpoint)!r} have to be tensors with names, at least one; not so: {list(foreign)}."
        )
    # a tensor may repeat one number, or many share the same numbers: what they stand for would fill any memory
    if sum(value.numel() * value.element_size() for value in state_dict.values()) > Path(checkpoint).stat().st_size:
        raise ConversionError(f"The weights of {str(checkpoint)!r} are larger than the file, which no saved model is.")
    return OfficialWeights(dict(state_dict), source)


def build_model(state_dict: Mapping[str, torch.Tensor], config: SViTConfig) -> SViTForImageClassification:
    """Build a model of `config` in float32 and fill it with official weights, all of them and exactly.

    Args:
        state_dict: Official weights, of any floating dtype.
        config: The architecture, see `infer_config`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConversionError: If keys are missing or unknown, or tensors have the wrong shape or kind, or numbers that are
            not finite; the message lists them.
    """
    with torch.device("meta"):
        model = SViTForImageClassification(config)
    expected = model.state_dict()
    given = {our_key: key for key in state_dict if (our_key := to_ours(key)) is not None}
    problems = [f"missing: {to_official(key)}" for key in expected.keys() - given.keys()]
    problems += [
        f"unknown: {_shortened(key)}" for key in state_dict if not is_dropped(key) and to_ours(key) not in expected
    ]
    converted = {}
    for our_key in expected.keys() & given.keys():
        value, wanted = state_dict[given[our_key]], expected[our_key]
        shape = official_shape(our_key, tuple(wanted.shape))
        if tuple(value.shape) == shape and _is_dense(value, wanted.is_floating_point()):
            converted[our_key] = value.reshape(wanted.shape)
            if not value.isfinite().all():
                problems.append(f"not finite: {given[our_key]} holds NaN or infinity")
        else:
            problems.append(f"wrong: {given[our_key]} is {_describe(value)}; has to be like {shape}, {wanted.dtype}")
    if problems:
        raise ConversionError("The weights do not fit the architecture:\n" + "\n".join(sorted(problems)))
    model.to_empty(device="cpu").load_state_dict(converted, strict=True)
    model.train(False)
    return model


def compare_with_reference(
    model: SViTForImageClassification, reference: str | Path, tolerance: float = REFERENCE_TOLERANCE
) -> float:
    """Compare the model's logits with recorded ones.

    Args:
        model: The converted model, in evaluation mode.
        reference: A safetensors file with `pixel_values`, `(B, C, H, W)`, and their `logits`, `(B, num_labels)`.
        tolerance: Largest relative error allowed, in norm over all logits.

    Returns:
        The relative error.

    Raises:
        ConversionError: If the file cannot be used, or the error is larger.
    """
    try:
        tensors = safetensors.torch.load_file(reference)
        pixel_values, expected = tensors["pixel_values"], tensors["logits"]
        with torch.no_grad():
            logits = model(pixel_values).logits
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ConversionError(f"`reference` is {str(reference)!r}, which cannot be used: {error!r}") from error
    if logits.shape != expected.shape:
        raise ConversionError(
            f"`reference` has logits of shape {tuple(expected.shape)}; the model's are {tuple(logits.shape)}."
        )
    difference = ((logits - expected).norm() / expected.norm()).item()
    # the negation refuses NaN too
    if not difference <= tolerance:
        raise ConversionError(
            f"The logits differ from `reference` by {difference:.3g}, relative in norm; `tolerance` is {tolerance:g}."
        )
    return difference


@contextmanager
def _only_safe_global(allowed: type) -> Iterator[None]:
    """Let the restricted unpickler build `allowed`, and forget for a while what libraries have declared safe."""
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([allowed])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)


def _unpickle(checkpoint: Path) -> Any:
    if not checkpoint.is_file():
        raise ConversionError(f"`checkpoint` is {str(checkpoint)!r}, which is not a file.")
    try:
        if zipfile.is_zipfile(checkpoint):
            with zipfile.ZipFile(checkpoint) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            # torch stores tensors as they are; what is compressed can unpack to any size
            if unpacked > checkpoint.stat().st_size:
                raise ValueError(f"it would unpack to {unpacked / 1e9:.3g} GB, more than the file is large")
        with _only_safe_global(argparse.Namespace):
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
    # a damaged or hostile file can raise anything here
    except Exception as error:
        # torch wraps the reason in advice on how to switch the protection off
        reason = str(error.__context__ or error).partition(" Please use ")[0]
        raise ConversionError(
            f"{str(checkpoint)!r} cannot be read as tensors, plain containers and argparse.Namespace: "
            f"{reason or type(error).__name__}"
        ) from error


def _is_named_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _shortened(key: str) -> str:
    return key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}..."


def _is_dense(value: torch.Tensor, is_floating_point: bool) -> bool:
    has_numbers = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    return has_numbers and value.is_floating_point() == is_floating_point


def _describe(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)}, {value.dtype}, {value.layout}"


def _write(model: SViTForImageClassification, output_dir: Path) -> None:
    try:
        with files_into(output_dir) as folder:
            model.save_pretrained(folder)
            default_image_processor(model.config).save_pretrained(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConversionError(f"`output_dir` is {str(output_dir)!r}, which cannot be written: {error}") from error
