# SPDX-License-Identifier: Apache-2.0
"""What a task has to answer: its columns, augmentation, batches, models, loss, metric, predictions, pictures of them.

`Task` is what the training loop asks, and all that it knows. To add a task of dense predictions, write one file with a
subclass of `DenseTask` and name it in `svit_hf.tasks.TASKS`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from svit_hf.data.sharding import SampleKey
from svit_hf.errors import SViTError
from svit_hf.evaluation.outputs import Ranks
from svit_hf.evaluation.report import Report
from svit_hf.files import whole_file
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.tasks.heads import counting_own_objects, find_head
from svit_hf.tasks.models import build_model, check_image_size, check_labels
from svit_hf.tasks.options import IS_STORED, AnnotationOptions
from svit_hf.tasks.pictures import Augmentation, Origin, View


if TYPE_CHECKING:
    # these need the packages of svit-hf[train], models do not
    from svit_hf.data.loading import Batch, EvaluationLoader
    from svit_hf.tasks.evaluation import DenseReport


@dataclass
class Sample:
    """One picture with its annotation, as it was read.

    Attributes:
        picture: RGB.
        target: What the task's `read` makes of the annotation.
        origin: Where it is from.
    """

    picture: Image.Image
    target: Any
    origin: Origin

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.picture.height, self.picture.width


@dataclass(frozen=True)
class Truth:
    """What is annotated of a picture.

    Attributes:
        target: What the task's `read` makes of the annotation.
        size: Height and width of the picture, in pixels.
    """

    target: Any
    size: tuple[int, int]


@dataclass
class Rows:
    """The rows of a split, all in the columns that the task reads.

    Attributes:
        origins: Where each row is from.
        load: Function of a position to the row.
        labels: Names of the classes, where the data state them.
        files: Files with the annotations: their names and sizes tell these data from others.
    """

    origins: Sequence[Origin]
    load: Callable[[int], Mapping[str, Any]]
    labels: list[str] | None = None
    files: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], Origin]:
        return self.load(index), self.origins[index]


class Metric(ABC):
    """A number for a whole split, from parts that can be computed anywhere and added in any order.

    Shares of a split, whose states are merged, give the same as the whole, to the last digit.

    Attributes:
        log_fields: Names of the most important numbers, the best first.
    """

    log_fields: ClassVar[tuple[str, ...]]

    @abstractmethod
    def update(self, index: int, prediction: Any, sample: Sample | Truth) -> None:
        """Count one picture; `index` is its place in the split."""

    @abstractmethod
    def state(self) -> Any:
        """Return what was counted, to send it to other ranks."""

    @abstractmethod
    def merge(self, state: Any) -> None:
        """Add what another rank has counted."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the numbers, by name."""


class Task(ABC):
    """What the training loop asks of a task.

    Attributes:
        name: As in `build_model`, or "classification".
        best_metric: Name of the number that says which of two models is better.
        labels: Names of the classes, in order.
        processor: What prepares images for the trained model; saved beside its weights.
    """

    name: ClassVar[str]
    best_metric: str
    labels: list[str]
    processor: BaseImageProcessor

    @abstractmethod
    def training_example(self, decoded: Any, key: SampleKey) -> Any:
        """Return what a batch is made of, from what the source decodes: a pure function of its arguments."""

    @abstractmethod
    def evaluation_example(self, decoded: Any, key: SampleKey) -> Any:
        """Return what a batch of an evaluation is made of; nothing in it is random."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: "Batch", seed: int, update: int) -> torch.Tensor:
        """Return the mean loss of a training batch, which is on the model's device.

        Args:
            model: Maps pixel values, and whatever else the task gives it, to outputs.
            batch: What the source has made of training examples.
            seed: What is random in the loss follows from it, and from torch's generator, which is seeded by it.
            update: Number of the update.
        """

    @abstractmethod
    def measure(self, model: torch.nn.Module, loader: "EvaluationLoader", ranks: Ranks | None = None) -> Report:
        """Evaluate a model on this process's share of the images, and report on all of them.

        Raises:
            EvaluationError: If images were not counted exactly once, or none could be read.
            EvaluationInterruptedError: If `ranks.should_stop` said yes on some process.
        """

    def write_contact_sheet(self, model: torch.nn.Module, loader: "EvaluationLoader", file: Path) -> None:  # noqa: B027
        """Draw what a model says of some pictures into a PNG file, if the task has anything to draw."""


class DenseTask(Task):
    """The answers of a task of dense predictions.

    Args:
        labels: Names of the classes, one per class index of the data.
        image_size: Height and width that the model takes, in pixels: one int or a pair, multiples of 32.
        head: As in `build_model`.
        augmentation: Random changes of training samples.
        annotations: How annotations are to be read.

    Attributes:
        size: Height and width that the model takes.
        annotation_options: The options of annotations that the task knows.
        annotation_columns: Columns of annotations beside that of the `image`, of which a row has one.
        other_columns: Columns that a row may have.
        takes_crops: Whether training examples may be smaller than the images that the model is asked about.
    """

    takes_crops: ClassVar[bool] = True
    annotation_options: ClassVar[tuple[str, ...]] = ()
    annotation_columns: ClassVar[tuple[str, ...]]
    other_columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        labels: Sequence[str],
        image_size: int | tuple[int, int],
        head: str | None = None,
        augmentation: Augmentation | None = None,
        annotations: AnnotationOptions | None = None,
    ):
        self.annotations = annotations or AnnotationOptions()
        self.annotations.require_known(self.annotation_options, self.name)
        self.labels = check_labels(labels)
        self.size = check_image_size(image_size)
        self.head = find_head(self.name, head)
        self.augmentation = augmentation or Augmentation()
        size = self.augmentation.size and check_image_size(self.augmentation.size)
        if size not in (None, self.size) and not self.takes_crops:
            raise SViTError(
                f"`size` of `augmentation` is {size}, and `image_size` {self.size}: boxes are shares of the image, so "
                f"that {self.name} has to learn at the size it is asked at. Leave it out; `scale` cuts parts "
                "out, and enlarges them."
            )
        self.processor: BaseImageProcessor = self.head.make_processor(self.size)
        self.check()

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            SViTError: If it does not.
        """

    def build_model(self, backbone: str | os.PathLike[str] | SViTConfig, **options: Any) -> PreTrainedModel:
        """Build a model for these labels, size and head; the arguments are those of `svit_hf.build_model`."""
        return build_model(self.name, backbone, self.labels, self.size, self.head.name, **options)

    @classmethod
    @abstractmethod
    def find_rows(cls, path: Path, split: str) -> Rows:
        """Find the rows of a split in a folder; the file of the task says in which layouts.

        Raises:
            DataError: If there are none.
        """

    @abstractmethod
    def read(self, row: Mapping[str, Any], origin: Origin) -> Sample:
        """Decode a row, and check its annotation.

        Raises:
            DataError: If it cannot be used; the message names file and row.
        """

    @abstractmethod
    def features(self) -> dict[str, Any]:
        """Return the features of `datasets` for the columns that `stored` writes."""

    @abstractmethod
    def stored(self, sample: Sample) -> dict[str, Any]:
        """Return an annotation as columns that `read` reads again, whatever the options of annotations are by then."""

    def options_of(self, row: Mapping[str, Any]) -> AnnotationOptions:
        """Return how the annotation of a row is to be read: by default what `stored` wrote."""
        return AnnotationOptions() if row.get(IS_STORED) else self.annotations

    def augment(self, sample: Sample, seed: int, epoch: int, index: int, view: int = 0) -> dict[str, Any]:
        """Return an example for training: a pure function of its arguments."""
        size = self.augmentation.size or self.size
        return self.example(sample, View.random(sample.size, size, self.augmentation, (seed, epoch, index, view)))

    def training_example(self, decoded: Sample, key: SampleKey) -> dict[str, Any]:
        """Augment a sample."""
        return self.augment(decoded, *key)

    def evaluation_example(self, decoded: Sample, key: SampleKey) -> tuple[torch.Tensor, Truth]:
        """Return the whole picture, resized, `(3, height, width)`, and what is annotated of it."""
        pixels = View.whole(decoded.size, self.size).of_picture(decoded.picture)
        return pixels, Truth(decoded.target, decoded.size)

    @abstractmethod
    def example(self, sample: Sample, view: View) -> dict[str, Any]:
        """Return tensors of a sample, seen through `view`."""

    @abstractmethod
    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch: the keyword arguments of the model."""

    def loss(self, model: torch.nn.Module, batch: "Batch", seed: int = 0, update: int = 0) -> torch.Tensor:
        """Return the head's own loss, a mean over the batch, which may have more in it than the model takes."""
        inputs = {name: value for name, value in batch.items() if name not in ("sample_ids", "bad_images")}
        with counting_own_objects():
            return model(**inputs).loss

    def measure(self, model: torch.nn.Module, loader: "EvaluationLoader", ranks: Ranks | None = None) -> "DenseReport":
        """Count what a model says of every picture that `loader` gives, over all processes."""
        from svit_hf.tasks.evaluation import measure

        return measure(self, model, loader, ranks or Ranks())

    def write_contact_sheet(self, model: torch.nn.Module, loader: "EvaluationLoader", file: Path) -> None:
        """Draw the first pictures: above what is annotated, below what the model says."""
        from svit_hf.tasks.evaluation import contact_sheet, first_samples

        with whole_file(file) as unfinished:
            contact_sheet(self, model, first_samples(loader)).save(unfinished, "PNG")

    @abstractmethod
    def metric(self) -> Metric:
        """Return an empty metric."""

    @torch.no_grad()
    def predict(self, model: torch.nn.Module, pictures: Sequence[Image.Image]) -> list[Any]:
        """Return what a model in evaluation mode says of pictures, one by one in their own sizes."""
        first = next(model.parameters())
        views = [View.whole((picture.height, picture.width), self.size) for picture in pictures]
        pixels = torch.stack([view.of_picture(picture) for view, picture in zip(views, pictures, strict=True)])
        outputs = model(pixel_values=pixels.to(first.device, first.dtype))
        return self.predictions(outputs, [(picture.height, picture.width) for picture in pictures])

    @abstractmethod
    def predictions(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[Any]:
        """Turn outputs of the model into predictions, for pictures of `sizes` (height, width)."""

    @abstractmethod
    def draw(self, picture: Image.Image, prediction: Any) -> Image.Image:
        """Draw a prediction on a copy of its picture."""

    def evaluate(self, model: torch.nn.Module, rows: Rows, batch_size: int = 8) -> "DenseReport":
        """Count what a model says of every row, in this process; the model is in evaluation mode meanwhile."""
        from svit_hf.data.loading import EvaluationLoader
        from svit_hf.tasks.sources import RowsSource

        loader = EvaluationLoader(RowsSource(rows, self, "rows"), self.evaluation_example, batch_size=batch_size)
        return self.measure(model, loader, Ranks(next(model.parameters()).device))


class TrainingExamples(Dataset[dict[str, Any]]):
    """Augmented examples of a split, for a loader of torch.

    Args:
        task: What reads and augments them.
        rows: The split.
        seed: Of the augmentation.

    Attributes:
        epoch: Of the augmentation, from 0; `set_epoch` changes it, and reaches workers that start afterwards.
    """

    def __init__(self, task: DenseTask, rows: Rows, seed: int = 0):
        self.task, self.rows, self.seed, self.epoch = task, rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Augment anew."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.task.augment(self.task.read(*self.rows[index]), self.seed, self.epoch, index)
