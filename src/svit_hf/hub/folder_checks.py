# SPDX-License-Identifier: Apache-2.0
"""What has to hold for a folder before anything of it is sent: it loads, its card is true, it holds no secret."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from svit_hf.errors import SViTError, listed
from svit_hf.hub.commit import WEIGHTS
from svit_hf.hub.model_card import CardText, eval_results, evaluation_rows
from svit_hf.hub.remote_code import AUTO_MAPS
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.urls import find_credentials


CARD_REMEDY = "Correct the card, or remove it to have one made of the report."


def check_model(folder: Path) -> SViTForImageClassification:
    """Load config and image processor, and compare names and shapes of the weights with what the config asks for.

    Returns:
        The model without its weights, on the device `meta`.

    Raises:
        SViTError: If one of them is missing or broken, or they do not belong together.
    """
    config = _load_config(folder)
    try:
        SViTImageProcessorPil.from_pretrained(folder)
    # whatever a broken file raises is the finding
    except Exception as error:
        raise SViTError(f"{str(folder)!r} has no image processor that loads: {error}") from error
    # neither memory nor random numbers are needed for shapes
    try:
        with torch.device("meta"):
            model = SViTForImageClassification(config)
    # values that are each possible need not be so together
    except Exception as error:
        raise SViTError(f"{str(folder)!r} has a config.json that is no model: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = _read_shapes(folder / WEIGHTS)
    differences = {
        "missing": expected.keys() - found.keys(),
        "unknown": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    if any(differences.values()):
        what = "; ".join(f"{what}: {listed(names)}" for what, names in differences.items() if names)
        raise SViTError(f"{str(folder / WEIGHTS)!r} does not hold the weights that config.json asks for: {what}.")
    return model


def check_code(folder: Path) -> None:
    """See that the code in a folder is whole, so that it loads where `svit_hf` is not installed.

    Raises:
        SViTError: If a config does not name it, or a file is missing that a config or another file names.
    """
    remedy = "save the model with `svit_hf.save_with_code`, or remove its *_svit.py files to have them added here."
    for name, expected in AUTO_MAPS.items():
        auto_map = read_object(folder / name).get("auto_map")
        auto_map = auto_map if isinstance(auto_map, dict) else {}
        if missing := expected.keys() - auto_map.keys():
            raise SViTError(f"{str(folder / name)!r} has no `auto_map` for {listed(missing)}: {remedy}")
        for module in sorted({reference.partition(".")[0] for reference in _leaves(auto_map)}):
            try:
                get_relative_import_files(folder / f"{module}.py")
            # a file that is not there, or no text
            except (OSError, ValueError) as error:
                raise SViTError(f"code is missing in {str(folder)!r} ({error}): {remedy}") from error


def check_card(content: bytes, of_run: CardText | None) -> str:
    """See that the Hub can read a card, and that its numbers are those of the run.

    Args:
        content: The card.
        of_run: What a card of the run would say, if the model is from a run whose report there is.

    Returns:
        The text of the card.

    Raises:
        SViTError: If it is not so.
    """
    try:
        card = ModelCard(content.decode("utf-8"))
        data = card.data
        assert isinstance(data, ModelCardData)
    # yaml, huggingface_hub and Python have errors of their own for what they cannot read
    except Exception as error:
        raise SViTError(f"the card README.md cannot be read: {error}") from error
    if not data.license:
        raise SViTError("the card README.md states no `license` in its metadata; 'unknown' is a valid one.")
    if of_run is not None:
        results = data.eval_results or []
        stated = {(result.dataset_type, result.dataset_split, result.metric_name): result for result in results}
        for evaluation in of_run.evaluations:
            for expected in eval_results(evaluation):
                key = (expected.dataset_type, expected.dataset_split, expected.metric_name)
                value = stated[key].metric_value if key in stated else None
                if value != expected.metric_value:
                    raise SViTError(
                        f"the metadata of the card README.md give {value} as {expected.metric_name} on "
                        f"{expected.dataset_name}, the report of the run {expected.metric_value}. {CARD_REMEDY}"
                    )
        _check_table(card.text, of_run)
    return content.decode("utf-8")


def check_no_credentials(name: str, content: bytes) -> None:
    """See that there is no access token, password or signature of an address in a file.

    Args:
        name: What to call the file.
        content: What is in it; of weights, the texts.

    Raises:
        SViTError: If there is one. The message does not repeat it.
    """
    text = content.decode("utf-8", "replace")
    if (place := find_credentials(text)) is not None:
        line = text.count("\n", 0, place) + 1
        raise SViTError(
            f"line {line} of {name} holds what looks like an access token, a password or a signature. Remove it "
            "there; if it has been seen by others, revoke it, too."
        )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        SViTError: If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SViTError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SViTError(f"{str(path)!r} holds a {type(content).__name__}; expected is a JSON object.")
    return content


def read_header(weights: Path) -> bytes:
    """Read the texts of a file of weights: names of tensors and metadata."""
    with weights.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _load_config(folder: Path) -> SViTConfig:
    path = folder / "config.json"
    content = read_object(path)
    try:
        config = SViTConfig.from_pretrained(folder)
    # Transformers, huggingface_hub and Python have errors of their own for what is wrong with a config
    except Exception as error:
        raise SViTError(f"{str(path)!r} cannot be loaded: {error}") from error
    architectures = content.get("architectures")
    if content.get("model_type") != "svit" or architectures != [SViTForImageClassification.__name__]:
        raise SViTError(
            f"{str(path)!r} is of {content.get('model_type')!r}, architectures {architectures}; what is published is "
            f"'svit', {[SViTForImageClassification.__name__]}."
        )
    return config


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        raise SViTError(f"there is no {str(path)!r}; weights have to be in one file of this format.")
    try:
        with safe_open(path, "pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise SViTError(f"{str(path)!r} cannot be read: {error}") from error


def _check_table(text: str, of_run: CardText) -> None:
    for beginning, number in evaluation_rows([*of_run.evaluations, *of_run.comparisons]):
        stated = [line for line in text.splitlines() if line.startswith(beginning)]
        if wrong := [line for line in stated if line != beginning + number]:
            raise SViTError(
                f"the card README.md says {wrong[0]!r}, the report of the run {beginning + number!r}. {CARD_REMEDY}"
            )


def _leaves(auto_map: Mapping[str, Any]) -> Iterable[str]:
    for value in auto_map.values():
        yield from _leaves(value) if isinstance(value, Mapping) else [str(value)]
