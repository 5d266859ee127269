# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its task, which knows examples, loss and metric, and to the data and the model of the task."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from svit_hf.data.decoding import DEFAULT_LIMITS
from svit_hf.data.loading import EvaluationLoader, TrainingLoader, workers_per_rank
from svit_hf.data.opening import labels_of, open_source
from svit_hf.data.sources import ImageSource, IndexedSource
from svit_hf.errors import SViTError
from svit_hf.model.configuration_svit import SViTConfig
from svit_hf.tasks import task_class
from svit_hf.tasks.classification import Classification, Criterion
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.pictures import Augmentation
from svit_hf.tasks.task import DenseTask, Task
from svit_hf.training.distillation import Teacher, make_teacher
from svit_hf.training.optimization import balanced_class_weights, make_criterion
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import flatten, to_json
from svit_hf.training.starting_model import make_config, make_image_processor, make_model


# what is for classification, and does nothing in other tasks
NEEDED_BY_DENSE_TASKS = {
    **{"data.multi_label": False, "data.sampling": "uniform", "data.validation_share": 0.0},
    **{"augmentation.randaugment": "", "augmentation.interpolation": "bilinear", "augmentation.random_erasing": 0.0},
    **dict.fromkeys(("mixing.mixup_alpha", "mixing.cutmix_alpha", "optimization.label_smoothing"), 0.0),
    **{"optimization.loss": "cross_entropy", "optimization.class_weights": "none", "distillation.teacher": ""},
    **{"model.crop_pct": None, "model.eval_mode": False},
    **{"data.max_image_pixels": DEFAULT_LIMITS.max_pixels, "data.max_image_bytes": DEFAULT_LIMITS.max_bytes},
}


# fields of a backbone with weights that dense tasks may set
CHANGEABLE = ("drop_path_rate", "normalize_features")


@dataclass(frozen=True)
class Data:
    """Images of a run, what is learnt from them, and from whom else."""

    task: Task
    train: ImageSource
    evaluation: ImageSource | None
    num_workers: int
    teacher: Teacher | None = None


def open_data(recipe: TrainingRecipe, accelerator: Accelerator) -> Data:
    """Open the images; rank 0 first, so that what is counted or downloaded is there for the others.

    Raises:
        SViTError: If there are no such images, the two splits have other classes, or options do not go together.
    """
    if recipe.task.name != "classification":
        return _open_dense(recipe, accelerator)
    if changed := recipe.task.changed():
        name, value = next(iter(changed.items()))
        raise SViTError(f"`task.{name}` is {value!r}, which says nothing about `task.name` 'classification'.")
    if not isinstance(recipe.model.image_size, int):
        raise SViTError(
            f"`model.image_size` is {recipe.model.image_size}; with `task.name` 'classification' it has to be one "
            "edge."
        )
    with accelerator.main_process_first():
        train = open_source(recipe.data, "train")
        evaluation = open_source(recipe.data, "eval") if recipe.run.evaluate_every_epochs else None
    if evaluation is not None and evaluation.label_names != train.label_names:
        raise SViTError(
            f"the training split has the classes {list(train.label_names)}, the evaluation split "
            f"{list(evaluation.label_names)}; they have to be the same."
        )
    task, teacher = _classification(recipe, train, accelerator)
    return Data(task, train, evaluation, workers_per_rank(recipe.data), teacher)


def _open_dense(recipe: TrainingRecipe, accelerator: Accelerator) -> Data:
    options = recipe.task
    kind = task_class(options.name)
    _require(recipe, NEEDED_BY_DENSE_TASKS, f"`task.name` {options.name!r}")
    splits = ("train", "eval") if recipe.run.evaluate_every_epochs else ("train",)
    with accelerator.main_process_first():
        found = [find_split(kind, recipe.data, split) for split in splits]
    labels = options.labels or found[0].labels
    if not labels:
        raise SViTError(
            f"`task.labels` is empty, and {recipe.data.path!r} does not name its classes; name them, in the order of "
            "their numbers."
        )
    task = dense_task(recipe, labels)
    for split in found:
        if split.labels and split.labels != task.labels and not options.labels:
            raise SViTError(
                f"the split {split.name!r} has the classes {split.labels}, the training split {task.labels}."
            )
    sources = [split.source(task) for split in found]
    return Data(task, sources[0], sources[1] if len(sources) > 1 else None, workers_per_rank(recipe.data))


def dense_task(recipe: TrainingRecipe, labels: Sequence[str]) -> DenseTask:
    """Return the task of a recipe for segmentation or detection.

    Raises:
        SViTError: If its options do not go together.
    """
    options, changed = recipe.task, recipe.augmentation
    augmentation = Augmentation(
        horizontal_flip=changed.horizontal_flip,
        vertical_flip=options.vertical_flip,
        quarter_turn=options.quarter_turn,
        scale=changed.scale,
        ratio=changed.ratio,
        color=changed.color_jitter,
        min_visible=options.min_visible,
        size=(options.crop_size, options.crop_size) if options.crop_size else None,
    )
    kind = task_class(options.name)
    task = kind(labels, recipe.model.image_size, options.head or None, augmentation, options.annotations)
    if recipe.run.parallelism == "fsdp2" and task.head.name != "upernet":
        raise SViTError(
            f"`run.parallelism` is 'fsdp2'; with the head {task.head.name!r} it has to be 'ddp': where pictures of a "
            "rank have no objects, parts of the head have no gradient there, for which the other ranks would wait."
        )
    return task


def training_loader(
    recipe: TrainingRecipe,
    data: Data,
    accelerator: Accelerator,
    micro_batches: int,
    num_ranges: int | None = None,
) -> TrainingLoader:
    """Return the loader of this rank's training batches."""
    labels = None
    if recipe.data.sampling == "balanced":
        labels = cast(list[int], labels_of(require_indexed(data.train, "data.sampling")))
    return TrainingLoader(
        data.train,
        data.task.training_example,
        batch_size=recipe.optimization.batch_size // micro_batches,
        micro_batches=micro_batches,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
        seed=recipe.run.seed,
        num_views=recipe.augmentation.num_views,
        shuffle_block=recipe.data.shuffle_block,
        labels=labels,
        num_ranges=num_ranges,
    )


def evaluation_loader(recipe: TrainingRecipe, data: Data, accelerator: Accelerator) -> EvaluationLoader | None:
    """Return the loader of this rank's share of the evaluation; none if there is no evaluation."""
    if data.evaluation is None:
        return None
    return EvaluationLoader(
        data.evaluation,
        data.task.evaluation_example,
        batch_size=recipe.run.evaluation_batch_size or recipe.optimization.device_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=data.num_workers,
    )


def model_of(recipe: TrainingRecipe, task: Task) -> PreTrainedModel:
    """Return the model that training starts from.

    Raises:
        SViTError: If weights cannot be loaded, or fields do not fit.
    """
    options = recipe.model
    if not isinstance(task, DenseTask):
        return make_model(options, task.labels, recipe.run.seed)
    torch.manual_seed(recipe.run.seed)
    backbone: str | SViTConfig = options.name_or_path
    if not options.name_or_path:
        backbone = make_config(options)
    elif other := [name for name in options.config if name not in CHANGEABLE]:
        raise SViTError(
            f"`model.config.{other[0]}` is {options.config[other[0]]!r}; of a backbone with weights, only "
            f"{' and '.join(f'`model.config.{name}`' for name in CHANGEABLE)} can be changed."
        )
    return task.build_model(
        backbone,
        width=recipe.task.width or None,
        **{name: options.config[name] for name in CHANGEABLE if name in options.config},
        head_options=dict(recipe.task.head_options),
    )


def _classification(
    recipe: TrainingRecipe, train: ImageSource, accelerator: Accelerator
) -> tuple[Classification, Teacher | None]:
    distillation = recipe.distillation
    if train.is_multi_label:
        # what makes no sense where an image has any number of labels
        needed = {"optimization.loss": "binary_cross_entropy", "optimization.class_weights": "none"}
        if distillation.kind != "features":
            needed["distillation.teacher"] = ""
        _require(recipe, needed, "`data.multi_label`")
    processor = make_image_processor(recipe.model)
    teacher = None
    if distillation.teacher:
        if distillation.kind == "features":
            # nothing would learn them; projections are not divided
            needed_by_features = {"model.freeze_backbone": False, "run.parallelism": "ddp"}
            _require(recipe, needed_by_features, "`distillation.kind` 'features'")
        teacher = make_teacher(distillation, train.label_names, processor, accelerator.device)
    criterion = _criterion(recipe, train, teacher, accelerator)
    task = Classification(train, processor, recipe.model.image_shape, recipe.augmentation, recipe.mixing, criterion)
    return task, teacher


def _criterion(
    recipe: TrainingRecipe, train: ImageSource, teacher: Teacher | None, accelerator: Accelerator
) -> Criterion:
    class_weights = None
    if recipe.optimization.class_weights == "balanced":
        class_weights = balanced_class_weights(count_classes(train)).to(accelerator.device)
    loss = make_criterion(recipe.optimization, class_weights)

    def label_loss(output: Any, targets: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        return loss(getattr(output, "logits", output), targets)

    if teacher is None:
        return label_loss
    return lambda output, targets, pixel_values: teacher.mix(
        label_loss(output, targets, pixel_values), output, teacher(pixel_values)
    )


def count_classes(source: ImageSource) -> list[int]:
    """Return the number of images of each class."""
    counts = Counter(labels_of(require_indexed(source, "optimization.class_weights")))
    return [counts[index] for index in range(len(source.label_names))]


def require_indexed(source: ImageSource, argument: str) -> IndexedSource:
    """Return a source whose labels can be read before its images.

    Raises:
        SViTError: If it is a stream.
    """
    if not isinstance(source, IndexedSource):
        raise SViTError(
            f"`{argument}` is 'balanced', but the classes of a stream are not counted. Leave it out, or set "
            "`data.streaming` to False."
        )
    return source


def _require(recipe: TrainingRecipe, needed: Mapping[str, object], reason: str) -> None:
    """Refuse a recipe in which an option is not what `reason` needs."""
    values = flatten(to_json(recipe))
    for name, allowed in needed.items():
        if values[name] != allowed:
            raise SViTError(f"`{name}` is {values[name]!r}; with {reason} it has to be {allowed!r}.")
