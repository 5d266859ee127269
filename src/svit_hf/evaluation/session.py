# SPDX-License-Identifier: Apache-2.0
"""What the commands of this folder have in common: processes, a model that takes images, progress."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from svit_hf.evaluation.checkpoints import class_names, load_classifier, load_image_processor
from svit_hf.evaluation.command import ClassifierOptions
from svit_hf.evaluation.preprocessing import Preprocessing


AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Classifier:
    """Hold a model that is ready for images.

    Attributes:
        model: The model, in eval mode.
        forward: What to call with pixel values.
        preprocessing: What makes pixel values of a picture.
        class_names: Names of the classes, in order.
    """

    model: PreTrainedModel
    forward: Callable[[torch.Tensor], Any]
    preprocessing: Preprocessing
    class_names: list[str]


def open_classifier(location: str, options: ClassifierOptions, device: torch.device) -> Classifier:
    """Load a model and what belongs to it.

    Raises:
        SViTError: If something cannot be loaded, or does not work with the options.
    """
    model = load_classifier(location, device)
    preprocessing = Preprocessing(load_image_processor(location), options.height_and_width, options.crop_pct)
    return Classifier(model, _forward_of(model, preprocessing.shape), preprocessing, class_names(model))


def processes() -> PartialState:
    """Return this process's place among those that `torchrun` or `accelerate launch` have started, and its device."""
    # without `cpu`, several processes on a machine without a GPU would take themselves for one each
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries from drawing bars of their own."""
    transformers_draws, datasets_draws = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if transformers_draws:
            logging.enable_progress_bar()
        if datasets_draws:
            datasets.enable_progress_bars()


def with_progress(batches: Iterable[Item], size: Callable[[Item], int], total: int, is_shown: bool) -> Iterator[Item]:
    """Yield batches, and show on a terminal how many images have gone by.

    Args:
        batches: The batches.
        size: Gives the images of a batch.
        total: How many images there are.
        is_shown: Whether this process shows anything at all.
    """
    # None: only on a terminal
    with tqdm(total=total, unit=" images", file=sys.stderr, leave=False, disable=None if is_shown else True) as bar:
        for batch in batches:
            yield batch
            bar.update(size(batch))


def _forward_of(model: PreTrainedModel, shape: tuple[int, ...]) -> Callable[[torch.Tensor], Any]:
    # vision transformers with learned positions refuse other sizes unless they are told to interpolate
    is_fixed = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    own_size = getattr(model.config, "image_size", None)
    if is_fixed and own_size not in (shape[-1], tuple(shape[-2:]), list(shape[-2:])):
        return partial(model, interpolate_pos_encoding=True)
    return model
