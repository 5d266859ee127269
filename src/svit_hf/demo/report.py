# SPDX-License-Identifier: Apache-2.0
"""What a quickstart leaves behind: a folder with model, card, report and pictures, and a summary."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from svit_hf.errors import SViTError
from svit_hf.files import whole_folder
from svit_hf.hub.model_card import CardText, Evaluation, build_model_card
from svit_hf.model.modeling_svit import SViTForImageClassification


MADE_BY = "svit-hf quickstart"
MODEL_FOLDER, IMAGE_FOLDER, PICTURE, REPORT = "model", "images", "predictions.png", "quickstart.json"
GOOD_ACCURACY = 0.97
NUM_SHOWN = 40
DATA_NAME = "Optical Recognition of Handwritten Digits"
# name of the folder inside the output folder in which a run writes, until it is complete
WORK = "unfinished"

# of the contact sheet, in pixels
TILE, GAP, CAPTION_HEIGHT, HEADER_HEIGHT, FRAME, COLUMNS = 96, 16, 30, 84, 4, 10
PAPER, INK, FAINT = "#fafaf7", "#1d2329", "#6b747d"
RIGHT, WRONG = "#d5d9dc", "#c8321f"


class Prediction(NamedTuple):
    """Image, what it shows, and what a model takes it for.

    Attributes:
        image: Any size and mode.
        truth: The right label.
        label: The predicted label.
        score: The probability that the model gives it, 0 to 1.
    """

    image: Image.Image
    truth: str
    label: str
    score: float

    @property
    def is_right(self) -> bool:
        """Whether the model is right."""
        return self.label == self.truth


@dataclass(frozen=True)
class QuickstartReport:
    """Results of a quickstart.

    Attributes:
        output_dir: The folder that was written.
        accuracy: Share of the held-out digits that the trained model gets right.
        top5_accuracy: Share of them whose class is among the first five.
        num_images: How many digits were held out.
        num_wrong: How many of them the trained model gets wrong.
        num_changed: How many the reloaded model answers otherwise than the trained one.
        num_parameters: Parameters of the model.
        training_seconds: Duration of the training alone.
        seconds: Duration of everything but loading the libraries.
    """

    output_dir: Path
    accuracy: float
    top5_accuracy: float
    num_images: int
    num_wrong: int
    num_changed: int
    num_parameters: int
    training_seconds: float
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What is not as it has to be, in words."""
        problems = []
        if self.accuracy < GOOD_ACCURACY:
            problems.append(f"the accuracy should be at least {GOOD_ACCURACY:.0%}")
        # another image backend may round otherwise, which can turn a close answer
        if self.num_changed > (1 - GOOD_ACCURACY) * self.num_images:
            problems.append("the model should give the same answers after saving as before")
        return problems

    def text(self) -> str:
        """Return what to print."""
        model, image = self.output_dir / MODEL_FOLDER, self.output_dir / IMAGE_FOLDER / "7.png"
        changed = f"{self.num_changed} other answers than" if self.num_changed else "the same answers as"
        lines = {
            "accuracy": f"{self.accuracy:.2%} of {self.num_images} held-out digits, {self.num_wrong} wrong; "
            f"top-5 {self.top5_accuracy:.2%}",
            "reloaded": f"in a fresh process, through the Auto classes and a pipeline: {changed} before saving",
            "time": f"{self.seconds:.0f} s after loading the libraries, {self.training_seconds:.0f} s of it training",
            "model": f"{model} ({self.num_parameters:,} parameters)",
            "model card": model / "README.md",
            "picture": self.output_dir / PICTURE,
        }
        summary = "\n".join(f"{name:<12}{value}" for name, value in lines.items())
        verdict = "".join(f"\nNot good enough: {problem}.\n" for problem in self.problems)
        return f"""
{summary}

Use the model from Python:

    import svit_hf
    from transformers import pipeline
    print(pipeline("image-classification", model="{model}")("{image}"))
{verdict}"""


@contextmanager
def replace_own_output(output_dir: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; its content replaces that of `output_dir` if the block ends without an error.

    The block writes a report with the names of its files, by which the folder is recognised later. A folder with any
    other file in it is left alone.

    Args:
        output_dir: Missing, empty, or written by an earlier quickstart.

    Raises:
        SViTError: If the folder holds something else, or cannot be written.
    """
    _refuse_foreign_files(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SViTError(f"`output_dir` is {str(output_dir)!r}, which cannot be written: {error}") from error
    # inside and not beside it: the folder may be a mount point
    with whole_folder(output_dir / WORK) as folder:
        yield folder
        # there was time to put something into the folder
        _refuse_foreign_files(output_dir)
    for old in _entries(output_dir):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    # the report last: without it, the folder would not be taken for a complete one
    for entry in sorted((output_dir / WORK).iterdir(), key=lambda entry: entry.name == REPORT):
        entry.rename(output_dir / entry.name)
    (output_dir / WORK).rmdir()


def write_report(
    folder: Path,
    report: QuickstartReport,
    model: SViTForImageClassification,
    predictions: Sequence[Prediction],
    settings: Mapping[str, object],
    num_trained: int,
) -> None:
    """Write card, pictures, and the report, beside a model that is in `folder` already."""
    command = f"{MADE_BY} --epochs {settings['epochs']} --seed {settings['seed']}"
    card = quickstart_card(report, command, settings, num_trained)
    build_model_card(model, card).save(folder / MODEL_FOLDER / "README.md")
    draw_contact_sheet(predictions).save(folder / PICTURE)
    (folder / IMAGE_FOLDER).mkdir()
    # the first digit of each class
    for prediction in reversed(predictions):
        prediction.image.save(folder / IMAGE_FOLDER / f"{prediction.truth}.png")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = asdict(report) | {"output_dir": str(report.output_dir), "made_by": MADE_BY, "files": files}
    (folder / REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def draw_contact_sheet(predictions: Sequence[Prediction]) -> Image.Image:
    """Draw the wrong predictions and then right ones, with label and probability under each; at most `NUM_SHOWN`.

    Args:
        predictions: At least one.

    Returns:
        An RGB image.
    """
    ordered = sorted(predictions, key=lambda prediction: prediction.is_right)
    shown = ordered[:NUM_SHOWN]
    num_right = sum(prediction.is_right for prediction in predictions)
    right_shown = sum(prediction.is_right for prediction in shown)
    rows = -(-len(shown) // COLUMNS)
    size = (GAP + COLUMNS * (TILE + GAP), HEADER_HEIGHT + rows * (TILE + CAPTION_HEIGHT + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"{num_right} of {len(predictions)} held-out digits read correctly"
    subtitle = (
        f"{len(shown) - right_shown} of {len(predictions) - num_right} wrong ones, {right_shown} of {num_right} right "
        "ones; below each digit what the model reads, and its probability"
    )
    draw.text((GAP, 34), title, INK, ImageFont.load_default(24), anchor="ls")
    draw.text((GAP, 60), subtitle, FAINT, ImageFont.load_default(15), anchor="ls")
    for index, prediction in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        corner = (GAP + column * (TILE + GAP), HEADER_HEIGHT + row * (TILE + CAPTION_HEIGHT + GAP))
        _draw_tile(sheet, draw, corner, prediction)
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], prediction: Prediction) -> None:
    left, top = corner
    frame, width = (RIGHT, 1) if prediction.is_right else (WRONG, FRAME)
    # ink reaches the edges of the digits, which would look cut off without a margin
    image = ImageOps.expand(prediction.image.convert("RGB"), border=1)
    sheet.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), corner)
    draw.rectangle((left - width, top - width, left + TILE + width - 1, top + TILE + width - 1), None, frame, width)
    baseline = top + TILE + CAPTION_HEIGHT - 8
    label = prediction.label if prediction.is_right else f"{prediction.label}, not {prediction.truth}"
    draw.text((left, baseline), label, INK if prediction.is_right else WRONG, ImageFont.load_default(18), anchor="ls")
    score = f"{100 * prediction.score:.0f} %"
    draw.text((left + TILE, baseline), score, FAINT, ImageFont.load_default(13), anchor="rs")


def quickstart_card(
    report: QuickstartReport, command: str, settings: Mapping[str, object], num_trained: int
) -> CardText:
    """Return the text of the model card.

    Args:
        report: What came out.
        command: The command line that trained the model.
        settings: Settings of the training run, by name.
        num_trained: Images that it was trained on.
    """
    num_held_out = report.num_images
    return CardText(
        name="svit-digits",
        location=str(report.output_dir / MODEL_FOLDER),
        summary=(
            "A tiny SViT that reads single handwritten digits, trained from scratch on a CPU. It shows that training, "
            "evaluation, saving and loading work; it says nothing about how good SViT is on photographs."
        ),
        data=(
            f"{num_trained} of the 1797 digits that come with scikit-learn (`sklearn.datasets.load_digits`): real "
            f"handwriting, 8x8 grey pixels, the test part of *{DATA_NAME}* (E. Alpaydin, C. Kaynak, UCI, 1998). The "
            f"other {num_held_out} were held out: a random fifth of each class, the same for every run. The image "
            "processor enlarges the digits to 32x32 pixels and repeats the grey channel."
        ),
        command=command,
        settings=dict(settings) | {"training time": f"{report.training_seconds:.0f} s"},
        evaluations=[
            Evaluation(
                dataset_name=DATA_NAME,
                dataset_id="sklearn/load_digits",
                split=f"held out by svit-hf, {num_held_out} of 1797 images",
                num_images=num_held_out,
                metrics={"accuracy": report.accuracy, "top5_accuracy": report.top5_accuracy},
            )
        ],
        limits=(
            "- Only for single digits that are cut out, centred and light on dark, as in these data. There is no "
            "class for anything else.\n"
            "- The data do not name the writers, so that one writer's digits can be on both sides of the split: the "
            "accuracy on unknown hands is likely lower.\n"
            f"- {num_held_out} images are few: one more or less that is right moves the accuracy by "
            f"{100 / num_held_out:.2f} points."
        ),
        provenance=(
            "The weights were trained from random ones by the command above; they contain none of the weights that "
            "the paper's authors published. They are offered under the Apache-2.0 licence, which is that of svit-hf. "
            "The digits come from the UCI Machine Learning Repository through scikit-learn, whose copy states no "
            "licence of its own for them; look it up there before you pass the digits on."
        ),
        tags=["digits"],
        has_code=False,
    )


def _entries(folder: Path) -> list[Path]:
    # another run may be at work in it
    return [entry for entry in folder.iterdir() if entry.name != WORK and not entry.name.startswith(f".{WORK}.")]


def _refuse_foreign_files(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise SViTError(f"`output_dir` is {str(output_dir)!r}, which is no folder; name a new or an empty one.")
    entries = _entries(output_dir) if output_dir.exists() else []
    paths = {path for entry in entries for path in [entry, *entry.rglob("*")] if not path.is_dir()}
    own = {REPORT, *_files_written_before(output_dir / REPORT)}
    if foreign := sorted({path.relative_to(output_dir).as_posix() for path in paths} - own):
        raise SViTError(
            f"`output_dir` is {str(output_dir)!r}, which holds {foreign[0]!r} and {len(foreign) - 1} more files that "
            f"`{MADE_BY}` did not write. Name a new or an empty folder, or an earlier output, which is replaced."
        )


def _files_written_before(report: Path) -> set[str]:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # no report, or someone else's: then nothing here is ours
        return set()
    is_own = isinstance(content, dict) and content.get("made_by") == MADE_BY
    return set(content["files"]) if is_own else set()
