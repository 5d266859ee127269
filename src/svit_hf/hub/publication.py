# SPDX-License-Identifier: Apache-2.0
"""What a push publishes: files that are chosen by name, checked, and completed with code, probe and card.

The model has to load, its card has to be true, and no file may hold a secret. Nothing here uses the network or changes
the folder. Except for a missing probe, nothing touches the random state, so that training may go on meanwhile.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from huggingface_hub import CommitOperationAdd, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from svit_hf.errors import SViTError, listed
from svit_hf.files import read_json
from svit_hf.hub.model_card import (
    CardText,
    build_model_card,
    card_text_of_run,
    eval_results,
    evaluation_rows,
    pipeline_tag,
    with_location,
)
from svit_hf.hub.probe import PROBE_FILE, write_probe
from svit_hf.hub.remote_code import AUTO_MAPS, with_auto_map
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.model.own_code_svit import code_files
from svit_hf.tasks.saved_models import dense_head, read_head
from svit_hf.urls import find_credentials


ModelT = TypeVar("ModelT", bound=PreTrainedModel)

REPORT = "report.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
CODE = "*_svit.py"
MODEL = ("config.json", "preprocessor_config.json", WEIGHTS, PROBE_FILE, CODE)
PUBLISHED = (*MODEL, CARD, "LICENSE", "LICENSE.*", "NOTICE")
CARD_REMEDY = "Correct the card, or remove it to have one made of the report."
SAVE_WITH_CODE = "`svit_hf.save_with_code`, or remove its *_svit.py files to have them added here"
PICKLES = ("*.bin", "*.ckpt", "*.joblib", "*.pickle", "*.pkl", "*.pt", "*.pth")


@dataclass(frozen=True)
class Publication:
    """What will be pushed.

    Attributes:
        files: The files of the commit, sorted by name.
        left_out: Files and folders beside them that stay where they are, with the reason.
        card: The text of the card, which is one of the files.
    """

    files: tuple[CommitOperationAdd, ...]
    left_out: Mapping[str, str]
    card: str


def prepare_publication(
    folder: Path, repo_id: str, card: CardText | None = None, licence: str | None = None, add_probe: bool = True
) -> Publication:
    """Choose, check and complete what is published of a folder; the arguments are those of `push_folder`.

    Raises:
        SViTError: If something is missing, broken, or not fit to be published.
    """
    folder, report = _find_model(folder)
    is_dense = dense_head(str(folder)) is not None
    model = _check_dense_model(folder) if is_dense else _check_model(folder)
    contents, left_out = _choose_files(folder)
    if is_dense:
        _check_code(folder, {"config.json": ("AutoConfig", str(model._auto_class))}, "`model.save_pretrained`")
    elif any(fnmatch(name, CODE) for name in contents):
        _check_code(folder, AUTO_MAPS, SAVE_WITH_CODE)
    else:
        contents |= _code(folder)
    if add_probe and PROBE_FILE not in contents:
        contents[PROBE_FILE] = _probe(folder, type(model))

    of_run = None
    if report is not None:
        of_run = card_text_of_run(report, name=repo_id.rpartition("/")[2], location=repo_id, licence=licence)
    if licence is not None and (card is not None or of_run is None or CARD in contents):
        raise SViTError(
            f"`licence` is {licence!r}, but the card is not made here of the report of a run; state it in the card."
        )
    text = card or of_run
    if text is not None and (card is not None or CARD not in contents):
        contents[CARD] = str(build_model_card(model, text)).encode()
    if CARD not in contents:
        raise SViTError(
            f"{str(folder)!r} has no {CARD}, and no report of a run to make one of; write one, whose metadata state a "
            "`license`."
        )
    final_card = with_location(_check_card(contents[CARD], of_run, pipeline_tag(model)), repo_id)
    contents[CARD] = final_card.encode()

    for name, content in {WEIGHTS: _read_header(folder / WEIGHTS), **contents}.items():
        _check_no_credentials(name, content)
    files = [CommitOperationAdd(WEIGHTS, folder / WEIGHTS)]
    files += [CommitOperationAdd(name, content) for name, content in contents.items()]
    return Publication(tuple(sorted(files, key=lambda file: file.path_in_repo)), left_out, final_card)


def _find_model(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the folder of the model, and the report of the training run that made it, if that is beside it."""
    if (folder / REPORT).is_file():
        return folder / "model", _read_object(folder / REPORT)
    if not (folder / "config.json").is_file():
        raise SViTError(
            f"`folder` is {str(folder)!r}; it has to be a model, with config.json, or the folder of a finished "
            f"training run, with {REPORT}."
        )
    # the folder may be given as "."
    report = folder.absolute().parent / REPORT
    is_of_run = folder.absolute().name == "model" and report.is_file()
    return folder, _read_object(report) if is_of_run else None


def _choose_files(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the content of what is published, except the weights, and what is left out with the reason."""
    contents: dict[str, bytes] = {}
    left_out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            left_out[f"{path.name}/"] = "a folder"
        elif any(fnmatch(path.name, pattern) for pattern in PICKLES):
            left_out[path.name] = "a pickle, which can run any program when it is loaded"
        elif not any(fnmatch(path.name, pattern) for pattern in PUBLISHED):
            left_out[path.name] = "not a part of a model"
        elif path.name != WEIGHTS:
            contents[path.name] = path.read_bytes()
    return contents, left_out


def _code(folder: Path) -> dict[str, bytes]:
    """Return the code of this package, and the configs of a folder with their references to it."""
    code = {path.name: path.read_bytes() for path in code_files()}
    configs = {
        name: with_auto_map((folder / name).read_text(encoding="utf-8"), auto_map).encode()
        for name, auto_map in AUTO_MAPS.items()
    }
    return code | configs


def _probe(folder: Path, model_class: type[PreTrainedModel]) -> bytes:
    model = model_class.from_pretrained(folder)
    with TemporaryDirectory() as temporary:
        write_probe(model, temporary)
        return Path(temporary, PROBE_FILE).read_bytes()


def _check_model(folder: Path) -> SViTForImageClassification:
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
    return _check_weights(folder, SViTForImageClassification, config)


def _check_dense_model(folder: Path) -> PreTrainedModel:
    """The same for a model for segmentation or detection."""
    head, config = read_head(folder)[:2]
    return _check_weights(folder, head.model_class, config)


def _check_weights(folder: Path, model_class: type[ModelT], config: PreTrainedConfig) -> ModelT:
    """Compare names and shapes of the weights with what a config asks for.

    Nothing is loaded: beside a training that goes on, that would draw from its random numbers, and Transformers
    changes what all threads initialize while it loads.

    Returns:
        The model without its weights, on the device `meta`.

    Raises:
        SViTError: If a weight is missing or not its own, or the config is no model.
    """
    # neither memory nor random numbers are needed for shapes
    try:
        with torch.device("meta"):
            model = model_class(config)
    # values that are each possible need not be so together
    except Exception as error:
        raise SViTError(f"{str(folder)!r} has a config.json that is no model: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = _read_shapes(folder / WEIGHTS)
    # of the names that share a tensor, as in some heads, the file has one
    shared = model.get_expanded_tied_weights_keys(all_submodels=True)
    there = {shared.get(name, name) for name in found}
    differences = {
        "missing": {name for name in expected if shared.get(name, name) not in there},
        "unknown": found.keys() - expected.keys(),
        "of another shape": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    if any(differences.values()):
        what = "; ".join(f"{what}: {listed(sorted(names))}" for what, names in differences.items() if names)
        raise SViTError(f"{str(folder / WEIGHTS)!r} does not hold the weights that config.json asks for: {what}.")
    return model


def _check_code(folder: Path, auto_maps: Mapping[str, Iterable[str]], remedy: str) -> None:
    """See that the code in a folder is whole, so that it loads where `svit_hf` is not installed.

    Args:
        folder: The model.
        auto_maps: Auto classes that configs have to name classes for, by file.
        remedy: What to save the model with.

    Raises:
        SViTError: If a config does not name it, or a file is missing that a config or another file names.
    """
    remedy = f"save the model with {remedy}."
    for name, expected in auto_maps.items():
        auto_map = _read_object(folder / name).get("auto_map")
        auto_map = auto_map if isinstance(auto_map, dict) else {}
        if missing := set(expected) - auto_map.keys():
            raise SViTError(f"{str(folder / name)!r} has no `auto_map` for {listed(sorted(missing))}: {remedy}")
        for module in sorted({reference.partition(".")[0] for reference in _leaves(auto_map)}):
            try:
                get_relative_import_files(folder / f"{module}.py")
            # a file that is not there, or no text
            except (OSError, ValueError) as error:
                raise SViTError(f"code is missing in {str(folder)!r} ({error}): {remedy}") from error


def _check_card(content: bytes, of_run: CardText | None, tag: str) -> str:
    """Return the text of a card, having seen that the Hub can read it and that its numbers are those of the run.

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
            for expected in eval_results(evaluation, tag):
                key = (expected.dataset_type, expected.dataset_split, expected.metric_name)
                value = stated[key].metric_value if key in stated else None
                if value != expected.metric_value:
                    raise SViTError(
                        f"the metadata of the card README.md give {value} as {expected.metric_name} on "
                        f"{expected.dataset_name}, the report of the run {expected.metric_value}. {CARD_REMEDY}"
                    )
        _check_table(card.text, of_run)
    return content.decode("utf-8")


def _check_no_credentials(name: str, content: bytes) -> None:
    """See that there is no access token, password or signature of an address in a file.

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


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        SViTError: If it cannot be read, or holds something else.
    """
    content = read_json(path, path.name)
    if not isinstance(content, dict):
        raise SViTError(f"{str(path)!r} holds a {type(content).__name__}; expected is a JSON object.")
    return content


def _read_header(weights: Path) -> bytes:
    """Read the texts of a file of weights: names of tensors and metadata."""
    with weights.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _load_config(folder: Path) -> SViTConfig:
    path = folder / "config.json"
    content = _read_object(path)
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
