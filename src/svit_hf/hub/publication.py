# SPDX-License-Identifier: Apache-2.0
"""What a push publishes: files that are chosen by name, checked, and completed with code and card.

Nothing here uses the network, or changes the folder. Except for a missing probe, nothing touches the random state, so
that training may go on meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd

from svit_hf.errors import SViTError
from svit_hf.hub.commit import WEIGHTS
from svit_hf.hub.folder_checks import (
    check_card,
    check_code,
    check_model,
    check_no_credentials,
    read_header,
    read_object,
)
from svit_hf.hub.model_card import CardText, build_model_card, eval_result_files, with_location
from svit_hf.hub.probe import PROBE_FILE, write_probe
from svit_hf.hub.remote_code import AUTO_MAPS, code_files, with_auto_map
from svit_hf.hub.run_card import card_text_of_run
from svit_hf.model.modeling_svit import SViTForImageClassification


REPORT = "report.json"
CARD = "README.md"
CODE = "*_svit.py"
MODEL = ("config.json", "preprocessor_config.json", WEIGHTS, PROBE_FILE, CODE)
PUBLISHED = (*MODEL, CARD, "LICENSE", "LICENSE.*", "NOTICE")
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
    """Choose, check and complete what is published of a folder.

    Args:
        folder: A model (`config.json`, `model.safetensors`, `preprocessor_config.json`), or the folder of a training
            run, whose `model/` is published.
        repo_id: Where it goes; the card says so.
        card: What the card says; by default the folder has one, or it is made of the report of the run.
        licence: Licence of the weights, for a card that is made of the report of a run.
        add_probe: Whether a folder without a probe gets one, for which the model is loaded.

    Raises:
        SViTError: If something is missing, broken, or not fit to be published.
    """
    folder, report = _find_model(folder)
    model = check_model(folder)
    contents, left_out = _choose_files(folder)
    if not any(fnmatch(name, CODE) for name in contents):
        contents |= _code(folder)
    else:
        check_code(folder)
    if add_probe and PROBE_FILE not in contents:
        contents[PROBE_FILE] = _probe(folder)

    of_run = None
    if report is not None:
        of_run = card_text_of_run(report, name=repo_id.rpartition("/")[2], location=repo_id, licence=licence)
    text = card or of_run
    is_card_of_run = card is None and of_run is not None and CARD not in contents
    if licence is not None and not is_card_of_run:
        raise SViTError(
            f"`licence` is {licence!r}, but the card is not made here of the report of a run; state it in the card."
        )
    if text is not None and (card is not None or CARD not in contents):
        contents[CARD] = str(build_model_card(model, text)).encode()
    if CARD not in contents:
        raise SViTError(f"{str(folder)!r} has no {CARD}, no report of a run to make one of, and no `card` was given.")
    final_card = with_location(check_card(contents[CARD], of_run), repo_id)
    contents[CARD] = final_card.encode()
    if text is not None:
        contents |= {name: content.encode() for name, content in eval_result_files(text.evaluations).items()}

    for name, content in {WEIGHTS: read_header(folder / WEIGHTS), **contents}.items():
        check_no_credentials(name, content)
    files = [CommitOperationAdd(WEIGHTS, folder / WEIGHTS)]
    files += [CommitOperationAdd(name, content) for name, content in contents.items()]
    return Publication(tuple(sorted(files, key=lambda file: file.path_in_repo)), left_out, final_card)


def _find_model(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the folder of the model, and the report of the training run that made it, if that is beside it."""
    if (folder / REPORT).is_file():
        return folder / "model", read_object(folder / REPORT)
    if not (folder / "config.json").is_file():
        raise SViTError(
            f"`folder` is {str(folder)!r}; it has to be a model, with config.json, or the folder of a finished "
            f"training run, with {REPORT}."
        )
    # the folder may be given as "."
    report = folder.absolute().parent / REPORT
    is_of_run = folder.absolute().name == "model" and report.is_file()
    return folder, read_object(report) if is_of_run else None


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


def _probe(folder: Path) -> bytes:
    model = SViTForImageClassification.from_pretrained(folder)
    with TemporaryDirectory() as temporary:
        write_probe(model, temporary)
        return Path(temporary, PROBE_FILE).read_bytes()
