# SPDX-License-Identifier: Apache-2.0
"""`svit-hf evaluate` and `svit-hf predict`: arguments, tables and files around the functions that do the work."""

import json
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from svit_hf.errors import SViTError
from svit_hf.evaluation.options import InputOptions, WeightsName, require_positive
from svit_hf.extras import require_extra
from svit_hf.files import require_writable, write_text
from svit_hf.progress import quiet_libraries
from svit_hf.tasks.options import AnnotationOptions, TaskName
from svit_hf.urls import without_credentials


MOST_IMAGES_SHOWN = 20
# options that the other kind of model does not have
FOR_CLASSIFIERS = ("image_size", "crop_pct", "flip", "label_map", "mask", "top_k", "embeddings")
DATA_OF_CLASSIFIERS = (
    *("train_split", "multi_label", "validation_share", "validation_seed", "sampling", "shuffle_block"),
    *("max_image_pixels", "max_image_bytes"),
)
FOR_DENSE_MODELS = ("annotations", "sheet", "min_score", "overlays", "task")


@dataclass(kw_only=True)
class EvaluateCommand(InputOptions):
    """Evaluate a model on images with labels, masks or boxes; each counts once, over any number of processes.

    It works with every image classifier of Transformers, and with heads for segmentation or detection on an SViT. Of
    a training run, raw weights and their average are evaluated, at their best. `torchrun -m svit_hf evaluate ...`
    divides the images among processes.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run.
        weights: Of a run, the weights to evaluate; all that there are if not given.
        flip: Average the probabilities of each image and of its mirror image.
        label_map: What the data's labels mean, where names do not say it: a text file with a line for each class of
            the model, holding the data's name for it; a JSON object from labels to classes; or a JSON list with the
            right classes of each image, such as real.json of ImageNet-ReaL.
        mask: A text file with the classes among which the model chooses, one per line, as for ImageNet-A and -R.
        output: A JSON file to write: all numbers, and what they are about.
        annotations: How masks and boxes are to be read.
        sheet: A PNG file to write: the first pictures with their annotations, and below them what the model finds.
        task: Of a model for segmentation whose config does not say it.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    weights: WeightsName | None = None
    flip: bool = False
    label_map: Path | None = None
    mask: Path | None = None
    output: Path | None = None
    annotations: AnnotationOptions = field(default_factory=AnnotationOptions)
    sheet: Path | None = None
    task: TaskName | None = None

    def run(self) -> int:
        """Evaluate, print tables, write the file, and return the exit status.

        Raises:
            SViTError: If an argument is impossible.
            DataError: After all was printed and written, if too many images were broken.
            EvaluationError: If images were not counted exactly.
        """
        require_extra("train", "evaluate")
        from svit_hf.data.decoding import BadImageTally
        from svit_hf.evaluation.checkpoints import find_weights
        from svit_hf.evaluation.classifier import processes
        from svit_hf.tasks.saved_models import dense_head

        locations = find_weights(self.model, self.weights)
        is_dense = dense_head(next(iter(locations.values()))) is not None
        _require_unset(self, is_dense)
        for name in ("output", "sheet"):
            if (file := getattr(self, name)) is not None:
                require_writable(file, name)
        with quiet_libraries():
            evaluations = (self._evaluate_dense if is_dense else self._evaluate)(locations)
        if processes().is_main_process:
            print(f"{'model':<24}{self.model}\n{_comparison(evaluations)}")  # noqa: T201 - a program's result
            print(f'\nPredict other pictures:\n\n    svit-hf predict {self.model} "new/*.jpg"')  # noqa: T201
            if self.output is not None:
                write_text(self.output, self._content(evaluations, locations))
        last = list(evaluations.values())[-1]
        for bad in last.bad_images:
            sys.stderr.write(without_credentials(f"broken: {bad.source}, row {bad.row}: {bad.reason}\n"))
        report = last.report
        num_images = report.num_images + report.num_broken + report.num_left_out
        BadImageTally(self.data.max_bad_share, listed=last.bad_images).add(num_images, report.num_broken)
        return 0

    def _evaluate(self, locations: dict[str, str]) -> dict[str, Any]:
        from svit_hf.evaluation.model_evaluation import evaluate_model, open_labelled

        source = open_labelled(self.data, self.split)
        names = ("image_size", "crop_pct", "batch_size", "precision", "flip", "label_map", "mask")
        common = {name: getattr(self, name) for name in names} | {"num_workers": self.data.num_workers}
        return {name: evaluate_model(location, source, **common) for name, location in locations.items()}

    def _evaluate_dense(self, locations: dict[str, str]) -> dict[str, Any]:
        from svit_hf.evaluation.classifier import processes
        from svit_hf.tasks.evaluation import evaluate_task_model
        from svit_hf.tasks.saved_models import open_task_model

        for item in fields(self.data):
            value = getattr(self.data, item.name)
            if item.name in DATA_OF_CLASSIFIERS and value != item.default:
                raise SViTError(f"`data.{item.name}` is {value!r}; masks and boxes are read without it.")
        common = {name: getattr(self, name) for name in ("split", "batch_size", "precision", "sheet")}
        evaluations = {}
        for name, location in locations.items():
            opened = open_task_model(location, processes().device, task=self.task, annotations=self.annotations)
            evaluations[name] = evaluate_task_model(opened, self.data, **common)
        return evaluations

    def _content(self, evaluations: dict[str, Any], locations: dict[str, str]) -> str:
        """Return the JSON file."""
        from svit_hf.evaluation.classifier import processes
        from svit_hf.provenance import provenance

        results = {
            name: {"location": locations[name], **evaluation.report.to_json(evaluation.class_names)}
            for name, evaluation in evaluations.items()
        }
        settings = next(iter(evaluations.values())).settings
        content = {**provenance(processes().device), "model": self.model, **settings, "results": results}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


@dataclass(kw_only=True)
class PredictCommand(InputOptions):
    """Predict the classes of images, or the masks or boxes in them, and write them as parquet files.

    The output folder gets a file for each part of the images, and each file as a whole. The same command continues
    where an earlier one was stopped, on any number of processes (`torchrun -m svit_hf predict ...`); with other
    arguments it is refused. A few pictures are also shown as a table, and need no folder. A model for segmentation or
    detection also writes coco.json, with run-length codes or boxes, and its masks as PNG.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run, whose finished model it is then.
        sources: Picture files, folders or globs of them; or one data set, as `--data.path` of `evaluate` names it.
        weights: Of a run, the weights to use instead of the finished model.
        output: The folder to write, or to continue.
        top_k: How many of the likeliest classes are written.
        part_size: Images per file.
        embeddings: Write what the classifier's last layer is given, too.
        min_score: Objects with a lower score are left out.
        overlays: Draw masks or boxes on the pictures, too.
        task: Of a model for segmentation whose config does not say it.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")]
    weights: WeightsName | None = None
    output: Path | None = None
    top_k: int = 5
    part_size: int = 4096
    embeddings: bool = False
    min_score: float = 0.5
    overlays: bool = False
    task: TaskName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(top_k=self.top_k, part_size=self.part_size)

    def run(self) -> int:
        """Predict, print what was done, and return the exit status.

        Raises:
            SViTError: If an argument is impossible, or the folder holds something else.
        """
        require_extra("train", "predict")
        from svit_hf.evaluation.checkpoints import find_model
        from svit_hf.evaluation.classifier import processes
        from svit_hf.evaluation.pictures import open_images
        from svit_hf.evaluation.prediction import predict_images
        from svit_hf.tasks.prediction import predict_objects
        from svit_hf.tasks.saved_models import dense_head, open_task_model

        state = processes()
        location = find_model(self.model, self.weights)
        is_dense = dense_head(location) is not None
        _require_unset(self, is_dense)
        with quiet_libraries():
            source = open_images(self.sources, self.data, self.split)
            if self.output is None and (source.num_samples > MOST_IMAGES_SHOWN or state.num_processes > 1):
                raise SViTError(
                    f"`output` has to name a folder: only up to {MOST_IMAGES_SHOWN} images, on one process, are shown "
                    f"and not written; there are {source.num_samples}."
                )
            own = ("min_score", "overlays") if is_dense else ("image_size", "crop_pct", "top_k", "embeddings")
            names = ("output", "batch_size", "precision", "part_size", *own)
            options = {name: getattr(self, name) for name in names} | {"num_workers": self.data.num_workers}
            if is_dense:
                opened = open_task_model(location, state.device, task=self.task)
                predictions = predict_objects(opened, source, **options)
            else:
                predictions = predict_images(location, source, **options)
        if state.is_main_process:
            lines = [predictions.table()] if predictions.num_images <= MOST_IMAGES_SHOWN else []
            if self.output is not None:
                parts = f'datasets.load_dataset("parquet", data_files="{self.output}/part-*.parquet")'
                lines += [predictions.summary(), f"\nIn Python, this reads them:\n\n    {parts}"]
            print("\n".join(lines))  # noqa: T201 - a program's result
        return 0


def _require_unset(command: Any, is_dense: bool) -> None:
    """Refuse options that are for another kind of model.

    Raises:
        SViTError: If one is not its default.
    """
    kind = "classifiers" if is_dense else "models for segmentation or detection"
    for item in fields(command):
        value = getattr(command, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name in (FOR_CLASSIFIERS if is_dense else FOR_DENSE_MODELS) and value != default:
            raise SViTError(
                f"`{item.name}` is {str(value)!r}; it is for {kind}, and {command.model!r} is none that can be read."
            )


def _comparison(evaluations: dict[str, Any]) -> str:
    """Return what was evaluated, a column of numbers for each set of weights, and their classes."""
    facts = list(evaluations.values())[-1].facts
    lines = [f"{title:<24}{value}" for title, value in facts.items()] + [""]
    columns = [{"": name} | evaluation.report.rows() for name, evaluation in evaluations.items()]
    width = max(len(value) for column in columns for value in column.values()) + 2
    for title in dict.fromkeys(title for column in columns for title in column):
        values = "".join(f"{column.get(title, '0'):<{width}}" for column in columns)
        lines.append(f"{title:<24}{values}".rstrip())
    for name, evaluation in evaluations.items():
        lines += ["", f"{name}, by class", evaluation.report.class_table(evaluation.class_names)]
    return "\n".join(lines)
