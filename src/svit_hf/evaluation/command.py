# SPDX-License-Identifier: Apache-2.0
"""`svit-hf evaluate` and `svit-hf predict`: the arguments; the work is in `model_evaluation.py`, `prediction.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.extras import require_extra


Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(kw_only=True)
class ClassifierOptions:
    """Say how a model is given images.

    Args:
        data: Where the images are, and how they are read.
        split: The split to read; wins over `data.eval_split`.
        image_size: Edge, or height and width, of what the model sees, in pixels; its own if not given.
        crop_pct: Share of the resized picture's edge that the crop keeps; that of the model if not given.
        batch_size: Images per batch of each process.
        precision: Precision of the forward pass.
    """

    data: DataOptions = field(default_factory=DataOptions)
    split: str | None = None
    image_size: int | tuple[int, int] | None = None
    crop_pct: float | None = None
    batch_size: int = 64
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        sizes = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        for size in sizes:
            if size is not None and size < 1:
                raise SViTError(f"`image_size` is {self.image_size}; it has to be at least 1.")
        if self.batch_size < 1:
            raise SViTError(f"`batch_size` is {self.batch_size}; it has to be at least 1.")

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The size of what the model sees, in pixels; `None` for its own."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


@dataclass(kw_only=True)
class EvaluateCommand(ClassifierOptions):
    """Evaluate a classifier on labelled images; each counts once, over any number of processes.

    It works with every image classifier of Transformers. Of a training run, raw weights and their average are
    evaluated, at their best. `torchrun -m svit_hf evaluate ...` divides the images among processes.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run.
        weights: Of a run, the weights to evaluate; all that there are if not given.
        flip: Average the probabilities of each image and of its mirror image.
        label_map: What the data's labels mean, where names do not say it: a text file with a line for each class of
            the model, holding the data's name for it; a JSON object from labels to classes; or a JSON list with the
            right classes of each image, such as real.json of ImageNet-ReaL.
        mask: A text file with the classes among which the model chooses, one per line, as for ImageNet-A and -R.
        output: A JSON file to write: all numbers, and what they are about.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    weights: Literal["raw", "ema"] | None = None
    flip: bool = False
    label_map: Path | None = None
    mask: Path | None = None
    output: Path | None = None

    def run(self) -> int:
        """Evaluate, print tables, write the file, and return the exit status.

        Raises:
            SViTError: If an argument is impossible, or images were not counted exactly.
        """
        require_extra("train", "evaluate")
        from svit_hf.evaluation.model_evaluation import evaluate_model
        from svit_hf.evaluation.session import quiet_libraries

        with quiet_libraries():
            evaluate_model(self)
        return 0


@dataclass(kw_only=True)
class PredictCommand(ClassifierOptions):
    """Predict the classes of images, and write them as parquet files.

    The output folder gets a file for each part of the images, and each file as a whole. The same command continues
    where an earlier one was stopped, on any number of processes (`torchrun -m svit_hf predict ...`); with other
    arguments it is refused. A few pictures are also shown as a table, and need no folder.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run, whose finished model it is then.
        sources: Picture files, folders or globs of them; or one data set, as `--data.path` of `evaluate` names it.
        weights: Of a run, the weights to use instead of the finished model.
        output: The folder to write, or to continue.
        top_k: How many of the likeliest classes are written.
        part_size: Images per file.
        embeddings: Write what the classifier's last layer is given, too.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")]
    weights: Literal["raw", "ema"] | None = None
    output: Path | None = None
    top_k: int = 5
    part_size: int = 4096
    embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "part_size"):
            if getattr(self, name) < 1:
                raise SViTError(f"`{name}` is {getattr(self, name)}; it has to be at least 1.")

    def run(self) -> int:
        """Predict, print what was done, and return the exit status.

        Raises:
            SViTError: If an argument is impossible, or the folder holds something else.
        """
        require_extra("train", "predict")
        from svit_hf.evaluation.prediction import predict_images
        from svit_hf.evaluation.session import quiet_libraries

        with quiet_libraries():
            predict_images(self)
        return 0
