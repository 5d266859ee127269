# SPDX-License-Identifier: Apache-2.0
"""What a training run does, as data: a frozen dataclass whose parts are frozen dataclasses.

Recipes (`svit_hf.recipes`) are functions that return one, `recipe_files.py` reads and writes them as JSON, and
`svit-hf train` makes every field an option of the command line.
"""

from dataclasses import dataclass, field
from typing import Literal

from svit_hf.data.options import AugmentationOptions, DataOptions, MixingOptions
from svit_hf.option_fields import JsonObject, check_options, option, require
from svit_hf.tasks.options import TaskOptions


Layout = Literal["tiny", "small", "base", "large"]
Schedule = Literal["cosine", "linear", "constant"]
Loss = Literal["cross_entropy", "binary_cross_entropy"]
DistillationKind = Literal["soft", "hard", "features"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Parallelism = Literal["ddp", "fsdp2"]
Tracker = Literal["tensorboard", "trackio", "wandb"]
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class ModelOptions:
    """The model that is trained, and which part of it.

    Args:
        name_or_path: Folder or Hub id of the weights to start from; empty for random ones.
        layout: The published layout to make, where the weights are random, or a tiny one of 1.5 M parameters.
        config: Fields of `SViTConfig` that win over those of the layout or of the folder. A single one is given as
            `--model.config.FIELD VALUE`.
        image_size: Edge of the training images in pixels; the model is evaluated at it, too. Segmentation and
            detection also take height and width.
        crop_pct: Share of the resized picture that the evaluation's crop keeps; by default the official rule.
        drop_path_schedule: Pairs of an epoch and the drop path rate from then on; empty for that of the config.
        eval_mode: Train in evaluation mode, as the official fine-tuning does: batch norms frozen, drop path and
            dropout off.
        freeze_backbone: Train the classifier alone.
        freeze_batch_norm: Keep the batch norms on their running statistics.
        gradient_checkpointing: Store less and compute again in the backward pass: everything within a layer (full), or
            what is cheap, which leaves out projections and attention (selective).
        compile: Compile the model with `torch.compile`.
    """

    name_or_path: str = ""
    layout: Layout = "small"
    config: JsonObject = field(default_factory=dict)
    image_size: int | tuple[int, int] = option(224, at_least=1)
    crop_pct: float | None = option(None, above=0, at_most=1)
    drop_path_schedule: tuple[tuple[int, float], ...] = option((), at_least=0)
    eval_mode: bool = False
    freeze_backbone: bool = False
    freeze_batch_norm: bool = False
    gradient_checkpointing: Literal["off", "full", "selective"] = "off"
    compile: bool = False

    def __post_init__(self) -> None:
        check_options(self, "model")
        require(
            all(rate < 1 for _, rate in self.drop_path_schedule),
            "model.drop_path_schedule",
            self.drop_path_schedule,
            "pairs of an epoch and a rate from 0 to below 1",
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the training images, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


@dataclass(frozen=True)
class OptimizationOptions:
    """The way in which the weights change; the defaults are those of the official training.

    Args:
        epochs: Passes over the data.
        batch_size: Images of one update, over all ranks and accumulation steps: the same recipe is the same training
            on any number of ranks.
        device_batch_size: Images that one device can hold; an update is divided into as many micro-batches as that
            takes.
        micro_batches: Micro-batches of an update, over all ranks; 0 for as few as `device_batch_size` allows. A run
            can go on with any number of ranks that divides them. Batch norms see the images of one.
        learning_rate: Peak learning rate at `base_batch_size`; it grows in proportion to `batch_size`.
        base_batch_size: See `learning_rate`; 0 means that the learning rate is taken as it is.
        schedule: Cosine or linear from the peak to `final_learning_rate`, or constant after the warm-up.
        warmup_epochs: Epochs of linear growth from `warmup_learning_rate`; may be a fraction.
        warmup_learning_rate: Learning rate of the first update, where there is a warm-up.
        final_learning_rate: Learning rate at the end of the cosine or the line.
        weight_decay: AdamW's; biases and norms are exempt.
        decay_layer_scale: Whether layer scales decay, as in the official code, or are exempt.
        layer_decay: Factor of the learning rate from each layer to the one before it; 1 for none.
        betas: AdamW's.
        epsilon: AdamW's.
        max_gradient_norm: Norm to which the gradient is cut down; 0 for no limit.
        loss: Cross entropy, or binary cross entropy of each class.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: Factors of the terms of each class in the loss: none, or in inverse proportion to the number of
            its training images (balanced), such that the mean over the training images is 1.
        ema_decay: Decay per update of the moving average of weights and buffers; 0 for no average.
        ema_warmup: Let the decay grow from 0, as (1 + u) / (10 + u) at update u, where that is less.
    """

    epochs: int = option(300, at_least=1)
    batch_size: int = option(1024, at_least=1)
    device_batch_size: int = option(128, at_least=1, changes_freely=True)
    micro_batches: int = option(0, at_least=0)
    learning_rate: float = option(5e-4, at_least=0)
    base_batch_size: int = option(512, at_least=0)
    schedule: Schedule = "cosine"
    warmup_epochs: float = option(5, at_least=0)
    warmup_learning_rate: float = option(1e-6, at_least=0)
    final_learning_rate: float = option(1e-5, at_least=0)
    weight_decay: float = option(0.05, at_least=0)
    decay_layer_scale: bool = False
    layer_decay: float = option(1.0, above=0, at_most=1)
    betas: tuple[float, float] = option((0.9, 0.999), at_least=0, below=1)
    epsilon: float = option(1e-8, above=0)
    max_gradient_norm: float = option(0.0, at_least=0)
    loss: Loss = "cross_entropy"
    label_smoothing: float = option(0.1, at_least=0, below=1)
    class_weights: ClassWeights = "none"
    ema_decay: float = option(0.99996, at_least=0, below=1)
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        check_options(self, "optimization")
        require(
            self.warmup_epochs <= self.epochs,
            "optimization.warmup_epochs",
            self.warmup_epochs,
            f"at most the {self.epochs} epochs of the run",
        )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after scaling."""
        scale = self.batch_size / self.base_batch_size if self.base_batch_size else 1.0
        return self.learning_rate * scale


@dataclass(frozen=True)
class DistillationOptions:
    """What the model learns from another one.

    Args:
        teacher: Folder or Hub id of any `AutoModelForImageClassification` with the same classes, or for features of
            any `AutoModel` of images; empty for none.
        kind: Learn the teacher's probabilities (soft), only its first choice (hard), or the directions of its class
            token, or of what it pools, and of its patches (features).
        weight: Share of the teacher in the loss; the labels have the rest. With 1 and features, the classifier is not
            trained.
        temperature: What both models' logits are divided by, for soft distillation.
        image_size: Edge that images are resized to for the teacher, in pixels. By default (0) that of its image
            processor for features, and for answers that of the training images.
    """

    teacher: str = ""
    kind: DistillationKind = "soft"
    weight: float = option(0.5, at_least=0, at_most=1)
    temperature: float = option(1.0, above=0)
    image_size: int = option(0, at_least=0)

    def __post_init__(self) -> None:
        check_options(self, "distillation")


@dataclass(frozen=True)
class RunOptions:
    """The way in which a run is carried out.

    Args:
        seed: Fixes initial weights, order, augmentation and everything else that is random.
        precision: Arithmetic of the forward pass; auto is bf16 on a GPU that has it, fp32 elsewhere. Weights,
            optimizer and moving average are fp32.
        parallelism: Copy the model to every rank (ddp), or divide weights, gradients and optimizer among them (fsdp2,
            in fp32 or bf16).
        sync_batch_norm: Normalise with statistics of all ranks instead of each rank's own.
        deterministic: Use deterministic algorithms only, which makes runs on GPUs repeat bit by bit, and slower.
        canonical_sums: Add up the micro-batches of an update in a fixed order, so that a run that goes on with another
            number of ranks has the same bits; slower. Only with ddp.
        log_every_updates: Updates per row of the log and per line without a terminal.
        evaluate_every_epochs: Epochs per evaluation; the last epoch always has one. 0 for none at all.
        patience: Epochs without a better model after which the run ends early; 0 for no early end.
        evaluation_batch_size: Images per device in an evaluation; 0 for `device_batch_size`.
        save_every_updates: Updates per checkpoint, besides those before every evaluation; 0 for none.
        save_every_minutes: Minutes per checkpoint, likewise; 0 for none.
        keep_checkpoints: Checkpoints to keep; the best one is kept apart.
        max_non_finite_updates: Updates in a row with a non-finite loss or gradient, all of them skipped, after which
            the run stops. More than 16, since fp16 halves its loss scale so many times before it is 1.
        trackers: Where numbers go besides the run's folder: tensorboard, trackio, wandb.
        push_to: Repository on the Hub, `USER/NAME`, that every new best model is pushed to while training goes on;
            made private if it is not there. Empty for none.
    """

    seed: int = option(0, at_least=0, at_most=2**63 - 1)
    precision: Precision = "auto"
    parallelism: Parallelism = "ddp"
    sync_batch_norm: bool = False
    deterministic: bool = False
    canonical_sums: bool = False
    log_every_updates: int = option(50, at_least=1, changes_freely=True)
    evaluate_every_epochs: int = option(1, at_least=0, changes_freely=True)
    patience: int = option(0, at_least=0, changes_freely=True)
    evaluation_batch_size: int = option(0, at_least=0, changes_freely=True)
    save_every_updates: int = option(0, at_least=0, changes_freely=True)
    save_every_minutes: float = option(20.0, at_least=0, changes_freely=True)
    keep_checkpoints: int = option(2, at_least=1, changes_freely=True)
    max_non_finite_updates: int = option(20, at_least=1, changes_freely=True)
    trackers: tuple[Tracker, ...] = option((), changes_freely=True)
    push_to: str = option("", changes_freely=True)

    def __post_init__(self) -> None:
        check_options(self, "run")
        require(
            not self.canonical_sums or self.parallelism == "ddp",
            "run.canonical_sums",
            self.canonical_sums,
            "false with `run.parallelism` fsdp2, where no rank has whole gradients",
        )
        require(
            not self.patience or self.evaluate_every_epochs > 0,
            "run.patience",
            self.patience,
            "0 where `run.evaluate_every_epochs` is 0: nothing tells what is better",
        )


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that a training run depends on, except the machine.

    Args:
        name: What to call it.
        model: The model.
        task: What is predicted.
        data: The images.
        augmentation: What happens to each image.
        mixing: How the images of a batch are mixed.
        optimization: How the weights change.
        distillation: What is learnt from another model.
        run: How the run is carried out.
    """

    name: str = option("custom", changes_freely=True)
    model: ModelOptions = field(default_factory=ModelOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    data: DataOptions = field(default_factory=DataOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    mixing: MixingOptions = field(default_factory=MixingOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_options(self)
