# SPDX-License-Identifier: Apache-2.0
"""What a training run does, as data: a frozen dataclass whose parts are frozen dataclasses.

Recipes (`svit_hf.recipes`) are functions that return one. `recipe_files.py` reads, writes and overrides them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from svit_hf.data.options import AugmentationOptions, DataOptions, MixingOptions
from svit_hf.errors import SViTError


Layout = Literal["small", "base", "large"]
Schedule = Literal["cosine", "constant"]
Loss = Literal["cross_entropy", "binary_cross_entropy"]
DistillationKind = Literal["soft", "hard"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Parallelism = Literal["ddp", "fsdp2"]
Tracker = Literal["tensorboard", "trackio", "wandb"]


@dataclass(frozen=True)
class ModelOptions:
    """Say which model is trained, and which part of it.

    Args:
        name_or_path: Folder or Hub id of the weights to start from; empty for random ones.
        layout: The published layout to make, where the weights are random.
        config: Fields of `SViTConfig` that win over those of the layout or of the folder. Single ones are set as
            `model.config.FIELD=VALUE`.
        image_size: Edge of the training images in pixels; the model is evaluated at it, too.
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
    config: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    crop_pct: float | None = None
    drop_path_schedule: tuple[tuple[int, float], ...] = ()
    eval_mode: bool = False
    freeze_backbone: bool = False
    freeze_batch_norm: bool = False
    gradient_checkpointing: Literal["off", "full", "selective"] = "off"
    compile: bool = False

    def __post_init__(self) -> None:
        _require(self.image_size >= 1, "model.image_size", self.image_size, "at least 1 pixel")
        _require(
            all(0 <= rate < 1 for _, rate in self.drop_path_schedule),
            "model.drop_path_schedule",
            self.drop_path_schedule,
            "pairs of an epoch and a rate from 0 to below 1",
        )


@dataclass(frozen=True)
class OptimizationOptions:
    """Say how the weights change; the defaults are those of the official training.

    Args:
        epochs: Passes over the data.
        batch_size: Images of one update, over all ranks and accumulation steps: the same recipe is the same training
            on any number of ranks.
        device_batch_size: Images that one device can hold in a step; an update is divided into as many steps as that
            takes.
        learning_rate: Peak learning rate at `base_batch_size`; it grows in proportion to `batch_size`.
        base_batch_size: See `learning_rate`; 0 means that the learning rate is taken as it is.
        schedule: Cosine from the peak to `final_learning_rate`, or constant after the warm-up.
        warmup_epochs: Epochs of linear growth from `warmup_learning_rate`; may be a fraction.
        warmup_learning_rate: Learning rate of the first update, where there is a warm-up.
        final_learning_rate: Learning rate at the end of the cosine.
        weight_decay: AdamW's; biases and norms are exempt.
        decay_layer_scale: Whether layer scales decay, as in the official code, or are exempt.
        layer_decay: Factor of the learning rate from each layer to the one before it; 1 for none.
        betas: AdamW's.
        epsilon: AdamW's.
        max_gradient_norm: Norm to which the gradient is cut down; 0 for no limit.
        loss: Cross entropy, or binary cross entropy of each class.
        label_smoothing: Share of the target that is spread over all classes.
        ema_decay: Decay per update of the moving average of weights and buffers; 0 for no average.
        ema_warmup: Let the decay grow from 0, as (1 + u) / (10 + u) at update u, where that is less.
    """

    epochs: int = 300
    batch_size: int = 1024
    device_batch_size: int = 128
    learning_rate: float = 5e-4
    base_batch_size: int = 512
    schedule: Schedule = "cosine"
    warmup_epochs: float = 5
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.05
    decay_layer_scale: bool = False
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_gradient_norm: float = 0.0
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.1
    ema_decay: float = 0.99996
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "device_batch_size"):
            _require(getattr(self, name) >= 1, f"optimization.{name}", getattr(self, name), "at least 1")
        for name in (
            "learning_rate",
            "base_batch_size",
            "warmup_epochs",
            "warmup_learning_rate",
            "final_learning_rate",
            "weight_decay",
            "max_gradient_norm",
        ):
            _require(getattr(self, name) >= 0, f"optimization.{name}", getattr(self, name), "at least 0")
        _require(0 < self.layer_decay <= 1, "optimization.layer_decay", self.layer_decay, "above 0 and up to 1")
        for name in ("label_smoothing", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, f"optimization.{name}", getattr(self, name), "at least 0, below 1")
        _require(
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
    """Say what the model learns from another one.

    Args:
        teacher: Folder or Hub id of any `AutoModelForImageClassification` with the same classes; empty for none.
        kind: Learn the teacher's probabilities, or only its first choice.
        weight: Share of the teacher in the loss; the labels have the rest.
        temperature: What both models' logits are divided by, for soft distillation.
    """

    teacher: str = ""
    kind: DistillationKind = "soft"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(0 <= self.weight <= 1, "distillation.weight", self.weight, "from 0 to 1")
        _require(self.temperature > 0, "distillation.temperature", self.temperature, "above 0")


@dataclass(frozen=True)
class RunOptions:
    """Say how the run is carried out.

    Args:
        seed: Fixes initial weights, order, augmentation and everything else that is random.
        precision: Arithmetic of the forward pass; auto is bf16 on a GPU that has it, fp32 elsewhere. Weights,
            optimizer and moving average are fp32.
        parallelism: Copy the model to every rank (ddp), or divide weights, gradients and optimizer among them (fsdp2,
            in fp32 or bf16).
        sync_batch_norm: Normalise with statistics of all ranks instead of each rank's own.
        deterministic: Use deterministic algorithms only, which makes runs on GPUs repeat bit by bit, and slower.
        log_every_updates: Updates per row of the log and per line without a terminal.
        evaluate_every_epochs: Epochs per evaluation; the last epoch always has one. 0 for none at all.
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

    seed: int = 0
    precision: Precision = "auto"
    parallelism: Parallelism = "ddp"
    sync_batch_norm: bool = False
    deterministic: bool = False
    log_every_updates: int = 50
    evaluate_every_epochs: int = 1
    evaluation_batch_size: int = 0
    save_every_updates: int = 0
    save_every_minutes: float = 20.0
    keep_checkpoints: int = 2
    max_non_finite_updates: int = 20
    trackers: tuple[Tracker, ...] = ()
    push_to: str = ""

    def __post_init__(self) -> None:
        for name in ("log_every_updates", "keep_checkpoints", "max_non_finite_updates"):
            _require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        for name in (
            "seed",
            "evaluate_every_epochs",
            "evaluation_batch_size",
            "save_every_updates",
            "save_every_minutes",
        ):
            _require(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True)
class TrainingRecipe:
    """Hold everything that a training run depends on, except the machine.

    Args:
        name: What to call it.
        model: The model.
        data: The images.
        augmentation: What happens to each image.
        mixing: How the images of a batch are mixed.
        optimization: How the weights change.
        distillation: What is learnt from another model.
        run: How the run is carried out.
    """

    name: str = "custom"
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    mixing: MixingOptions = field(default_factory=MixingOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    run: RunOptions = field(default_factory=RunOptions)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise SViTError(f"`{name}` is {value}; it has to be {allowed}.")
