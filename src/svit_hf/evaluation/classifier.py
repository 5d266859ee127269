# SPDX-License-Identifier: Apache-2.0
"""A model together with what turns pictures into its input, and the processes that share the work."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers.modeling_utils import PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import class_names, find_model, load_classifier, load_image_processor
from svit_hf.evaluation.options import Precision
from svit_hf.evaluation.outputs import compute
from svit_hf.evaluation.preprocessing import Preprocessing
from svit_hf.kernels import use_kernels


AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Model = str | os.PathLike[str] | PreTrainedModel


@dataclass(frozen=True)
class Classifier:
    """Model in eval mode, with what makes pixel values of a picture, and what to call with these."""

    model: PreTrainedModel
    forward: Callable[[torch.Tensor], Any]
    preprocessing: Preprocessing
    class_names: list[str]
    device: torch.device
    precision: Precision

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, num_classes)` of pixel values `(B, C, H, W)` on any device."""
        on_device = pixel_values.to(self.device, non_blocking=True)
        with torch.no_grad():
            logits: torch.Tensor = compute(self.forward, on_device, AUTOCAST_DTYPES[self.precision]).logits
        return logits


def open_classifier(
    model: Model,
    device: torch.device,
    *,
    image_processor: Any = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    precision: Precision = "fp32",
) -> Classifier:
    """Load a model and what belongs to it, and see that it works; the arguments are those of `evaluate_model`.

    A model in memory is put into eval mode and moved to the device.

    Raises:
        SViTError: If something cannot be loaded, or does not work with the options.
    """
    if isinstance(model, PreTrainedModel):
        name = type(model).__name__
        if image_processor is None:
            raise SViTError(f"`image_processor` is None; a model in memory, here a {name}, needs one.")
        moved: Any = model.eval()
        loaded: PreTrainedModel = moved.to(device)
    else:
        name = find_model(os.fspath(model))
        loaded = load_classifier(name, device)
        image_processor = image_processor or load_image_processor(name)
    use_kernels(loaded, "auto")
    preprocessing = Preprocessing(image_processor, _height_and_width(image_size), crop_pct)
    forward = _forward_of(loaded, preprocessing.shape)
    try:
        names = class_names(loaded)
        classifier = Classifier(loaded, forward, preprocessing, names, device, precision)
        num_logits = classifier.logits(torch.zeros(1, *preprocessing.shape)).shape[-1]
    # each model refuses sizes in its own way, and damaged configs fail in any
    except Exception as error:
        raise SViTError(
            f"`model` is {name!r}, which cannot compute images of shape {preprocessing.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if num_logits != len(names):
        raise SViTError(f"`model` is {name!r}, with {len(names)} names in `id2label` for {num_logits} classes.")
    return classifier


def processes() -> PartialState:
    """Return this process's place among those that `torchrun` or `accelerate launch` have started, and its device."""
    # without `cpu`, several processes on a machine without a GPU would take themselves for one each
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def _height_and_width(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _forward_of(model: PreTrainedModel, shape: tuple[int, ...]) -> Callable[[torch.Tensor], Any]:
    # vision transformers with learned positions refuse other sizes unless they are told to interpolate
    is_fixed = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    own_size = getattr(model.config, "image_size", None)
    if is_fixed and own_size not in (shape[-1], tuple(shape[-2:]), list(shape[-2:])):
        return partial(model, interpolate_pos_encoding=True)
    return model
