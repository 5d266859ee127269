# SPDX-License-Identifier: Apache-2.0
"""What a quickstart leaves behind: a folder with model, card, report and pictures, and a summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from svit_hf.files import files_into, require_new_folder
from svit_hf.hub.model_card import CardText, build_model_card, card_text_of_run
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.visualization.sheet import Panel, PanelRow, draw_sheet


MADE_BY = "svit-hf quickstart"
MODEL_FOLDER, IMAGE_FOLDER, PICTURE, REPORT = "model", "images", "predictions.png", "quickstart.json"
GOOD_ACCURACY = 0.97
NUM_SHOWN = 40
# of an enlarged digit, in pixels
TILE = 128
COLUMNS = 8


class Prediction(NamedTuple):
    """Image, what it shows, and what a model takes it for."""

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
    """Results of a quickstart; `num_wrong_reloaded` counts the digits that the model reads wrong once it is loaded."""

    output_dir: Path
    accuracy: float
    top5_accuracy: float
    num_images: int
    num_wrong_reloaded: int
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
        if abs(self.num_wrong_reloaded - self.num_wrong) > (1 - GOOD_ACCURACY) * self.num_images:
            problems.append("the model should be as good after saving as before")
        return problems

    @property
    def num_wrong(self) -> int:
        """Digits that the trained model reads wrong."""
        return round((1 - self.accuracy) * self.num_images)

    def text(self) -> str:
        """Return what to print."""
        model, image = self.output_dir / MODEL_FOLDER, self.output_dir / IMAGE_FOLDER / "7.png"
        lines = {
            "accuracy": f"{self.accuracy:.2%} of {self.num_images} held-out digits, {self.num_wrong} wrong; "
            f"top-5 {self.top5_accuracy:.2%}",
            "reloaded": f"{self.num_wrong_reloaded} wrong, in a fresh process, by the Auto classes and a pipeline",
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
    """Yield a folder to write to, whose files replace those of an earlier quickstart if the block ends well.

    Args:
        output_dir: Missing, empty, or written by an earlier quickstart, which left a report there. Other files in it
            are left alone.
    """
    if not _is_own(output_dir / REPORT):
        require_new_folder(output_dir, "output_dir")
    with files_into(output_dir) as folder:
        yield folder


def write_report(
    folder: Path, report: QuickstartReport, of_training: Mapping[str, Any], predictions: Sequence[Prediction]
) -> None:
    """Write card, pictures, and the report, beside a model that is in `folder` already."""
    model = SViTForImageClassification.from_pretrained(folder / MODEL_FOLDER)
    build_model_card(model, quickstart_card(report, of_training)).save(folder / MODEL_FOLDER / "README.md")
    num_right = sum(prediction.is_right for prediction in predictions)
    title = f"{num_right} of {len(predictions)} held-out digits read correctly"
    draw_sheet(rows_of_predictions(predictions), title).save(folder / PICTURE)
    (folder / IMAGE_FOLDER).mkdir()
    # the first digit of each class
    for prediction in reversed(predictions):
        prediction.image.save(folder / IMAGE_FOLDER / f"{prediction.truth}.png")
    content = asdict(report) | {"output_dir": str(report.output_dir), "made_by": MADE_BY}
    (folder / REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def rows_of_predictions(predictions: Sequence[Prediction]) -> list[PanelRow]:
    """Return what the picture shows: the wrong predictions and then right ones, at most `NUM_SHOWN` of them."""
    wrong = [prediction for prediction in predictions if not prediction.is_right][:NUM_SHOWN]
    right = [prediction for prediction in predictions if prediction.is_right][: NUM_SHOWN - len(wrong)]
    return [
        PanelRow(title, tuple(map(_panel, shown[start : start + COLUMNS])))
        for title, shown in (("Wrong", wrong), ("Right", right))
        for start in range(0, len(shown), COLUMNS)
    ]


def _panel(prediction: Prediction) -> Panel:
    # ink reaches the edges of the digits, which would look cut off without a margin
    image = ImageOps.expand(prediction.image.convert("RGB"), border=1)
    answer = prediction.label if prediction.is_right else f"{prediction.label}, not {prediction.truth}"
    caption = f"{answer}: {prediction.score:.0%}"
    return Panel(caption, image.resize((TILE, TILE), Image.Resampling.BICUBIC))


def quickstart_card(report: QuickstartReport, of_training: Mapping[str, Any]) -> CardText:
    """Return the text of the model card: that of any training run, and what is known of the digits."""
    num_held_out, num_trained = report.num_images, of_training["data"]["num_train"]
    location = str(report.output_dir / MODEL_FOLDER)
    text = card_text_of_run(of_training, name="svit-digits", location=location, licence="apache-2.0")
    return replace(
        text,
        summary=(
            "A tiny SViT that reads single handwritten digits, trained from scratch. It shows that training, "
            "evaluation, saving and loading work; it says nothing about how good SViT is on photographs."
        ),
        data=(
            f"{num_trained} of the 1797 digits that come with scikit-learn (`sklearn.datasets.load_digits`): real "
            "handwriting, 8x8 grey pixels, the test part of *Optical Recognition of Handwritten Digits* (E. Alpaydin, "
            f"C. Kaynak, UCI, 1998). The other {num_held_out} were held out: a random fifth of each class, the same "
            "for every run. The image processor enlarges the digits to 32x32 pixels and repeats the grey channel."
        ),
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
    )


def _is_own(report: Path) -> bool:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # no report, or someone else's
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY
