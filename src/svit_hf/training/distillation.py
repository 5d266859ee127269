# SPDX-License-Identifier: Apache-2.0
"""Learning from another model: from its answers, or from its features.

The teacher sees the pixels that the student sees, augmented and mixed, in its own normalisation and size, and never
trains. For its features, projections of the student's are trained beside the student: they are in the optimizer and in
checkpoints, and in no model that is saved.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification

from svit_hf.errors import SViTError
from svit_hf.evaluation.checkpoints import (
    class_names,
    load_and_compare,
    load_image_processor,
    require_weights,
    take_out_of_file,
)
from svit_hf.model.image_processing_pil_svit import SViTImageProcessorPil
from svit_hf.model.modeling_svit import SViTForImageClassification
from svit_hf.multiply_adds import count_multiply_adds
from svit_hf.training.options import DistillationOptions


TEACHER = "distillation.teacher"
# what the image processor of a teacher is tried out with: no two channels are alike
_COLOR, _COLOR_SIZE = (64, 128, 192), (256, 256)
_COLOR_TOLERANCE = 1e-3


class Features(NamedTuple):
    """What a model makes of images.

    Attributes:
        pooled: One vector for each image, `(B, C)`.
        patches: A map, `(B, C, H, W)`; its channels may be others than those of `pooled`.
    """

    pooled: torch.Tensor
    patches: torch.Tensor


class StudentOutput(NamedTuple):
    """Output of a student with projections: `logits`, `(B, num_labels)`, and projected features; see `Features`."""

    logits: torch.Tensor
    pooled: torch.Tensor
    patches: torch.Tensor


class FeatureProjections(nn.Module):
    """Linear maps from the features of a student to those of its teacher.

    Args:
        student: Channels of the student's pooled vector, and of its map.
        teacher: The same of the teacher.
    """

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int]):
        super().__init__()
        self.pooled, self.patches = (nn.Linear(ours, theirs) for ours, theirs in zip(student, teacher, strict=True))

    def forward(self, features: Features) -> Features:
        """Project both."""
        patches = self.patches(features.patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C, H, W)
        return Features(self.pooled(features.pooled), patches)


class StudentWithProjections(nn.Module):
    """What trains where features are learnt: an SViT classifier, and the projections, in one forward pass."""

    def __init__(self, student: SViTForImageClassification, projections: FeatureProjections):
        super().__init__()
        self.student, self.projections = student, projections

    def forward(self, pixel_values: torch.Tensor) -> StudentOutput:
        """Look at images, `(B, 3, H, W)`."""
        outputs = self.student.svit(pixel_values, return_dict=True)
        features = Features(outputs.pooler_output, outputs.last_hidden_state)
        return StudentOutput(self.student.classifier(features.pooled), *self.projections(features))


class Teacher(nn.Module):
    """A trained model that says what it sees in images that were prepared for the student.

    It is no part of what trains.

    Args:
        model: Maps `pixel_values` to an output with `logits`; never trained.
        options: Kind, weight, temperature and size.
        scale: Factor of the student's pixel values, `(3,)`, that with `shift` gives the teacher's normalisation.
        shift: See `scale`.
        image_size: Height and width that images are resized to; as they are if `None`.

    Attributes:
        sha256: What its weights are recognised by.
        revision: Commit on the Hub that they are from, if they are.
    """

    sha256: str
    revision: str | None

    def __init__(
        self,
        model: nn.Module,
        options: DistillationOptions,
        scale: torch.Tensor | float = 1.0,
        shift: torch.Tensor | float = 0.0,
        image_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.model = model
        self.eval().requires_grad_(False)
        self.options, self.image_size = options, image_size
        self.scale, self.shift = (
            value.view(-1, 1, 1) if isinstance(value, torch.Tensor) else value for value in (scale, shift)
        )
        # what has positions for one size asks for this at others
        takes_any_size = "interpolate_pos_encoding" in signature(model.forward).parameters
        self._arguments = {"interpolate_pos_encoding": True} if takes_any_size else {}

    def see(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the student sees, `(B, 3, H, W)`, as the teacher's image processor would give it."""
        pixel_values = pixel_values * self.scale + self.shift
        if self.image_size is None or pixel_values.shape[-2:] == self.image_size:
            return pixel_values
        return F.interpolate(pixel_values, self.image_size, mode="bicubic", antialias=True)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return the teacher's logits, `(B, num_labels)`, for what the student sees, `(B, 3, H, W)`."""
        logits: torch.Tensor = self.model(pixel_values=self.see(pixel_values), **self._arguments).logits
        return logits.float()

    def mix(self, label_loss: torch.Tensor, output: Any, answers: Any) -> torch.Tensor:
        """Mix the loss against the labels, a scalar, with the one of the model's `output` against the answers."""
        return (1 - self.options.weight) * label_loss + self.options.weight * self.loss(output, answers)

    def loss(self, output: Any, answers: Any) -> torch.Tensor:
        """Compare the logits of a student with those of the teacher.

        Soft: the Kullback-Leibler divergence of softened probabilities, times the temperature squared, which keeps
        gradients as large as without softening. Hard: cross entropy against the teacher's first choice.

        Source: Hinton et al., arXiv 1503.02531, section 2 (soft); Touvron et al., arXiv 2012.12877, section 4 (hard).
        """
        logits = getattr(output, "logits", output).float()
        if self.options.kind == "hard":
            return F.cross_entropy(logits, answers.argmax(dim=-1))
        temperature = self.options.temperature
        return temperature**2 * F.kl_div(
            F.log_softmax(logits / temperature, dim=-1),
            F.log_softmax(answers / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )

    def add_projections(self, student: nn.Module, seed: int) -> StudentWithProjections | None:
        """Return the student with what has to train beside it, if there is anything."""
        return None

    def description(self, image_shape: tuple[int, int]) -> str:
        """Return what there is to say about it where training images have a height and width of `image_shape`."""
        height, width = self.image_size or image_shape
        parameters = list(self.parameters())
        multiply_adds = count_multiply_adds(self, image_shape, parameters[0].device)
        return (
            f"{self.options.kind} of {type(self.model).__name__}, {sum(map(torch.numel, parameters)) / 1e6:.2f} M "
            f"parameters, {multiply_adds / 1e9:.3g} GMACs per image of {height} x {width} pixels"
        )


class FeatureTeacher(Teacher):
    """A trained model whose features are learnt: its class token, or what it pools, and its map of patches.

    Of tokens, the last ones are patches in rows, and the first one is a class token if there are more. Without a class
    token the pooled output is taken, and without that the mean of the map.

    Args:
        model: Maps `pixel_values` to an output with `last_hidden_state`, tokens or a map; never trained.
        options: Weight and size.
        scale: See `Teacher`.
        shift: See `Teacher`.
        image_size: Height and width that images are resized to.

    Attributes:
        has_class_token: Whether there is one.
        channels: Of the vector of an image, and of the map.

    Raises:
        SViTError: If it has no such features, or cannot look at images of this size.
    """

    def __init__(
        self,
        model: Any,
        options: DistillationOptions,
        scale: torch.Tensor | float,
        shift: torch.Tensor | float,
        image_size: tuple[int, int],
    ):
        super().__init__(model, options, scale, shift, image_size)
        patch_size = getattr(model.config, "patch_size", None) or 1
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        if any(edge % patch for edge, patch in zip(image_size, self.patch_size, strict=True)):
            fitting = image_size[0] // self.patch_size[0] * self.patch_size[0] or self.patch_size[0]
            raise SViTError(
                f"`distillation.image_size` is {image_size[0]}; it has to be a multiple of the {self.patch_size[0]} "
                f"pixels of a patch of `{TEACHER}` {options.teacher!r}, such as {fitting}."
            )
        self.has_class_token = False
        try:
            found = self(torch.zeros(1, 3, *image_size, device=next(model.parameters()).device))
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise SViTError(
                f"`{TEACHER}` is {options.teacher!r}, a {type(model).__name__}, which cannot look at an image of "
                f"{image_size[0]} x {image_size[1]} pixels alone: {type(error).__name__}: {error}"
            ) from error
        self.channels: tuple[int, int] = (found.pooled.shape[1], found.patches.shape[1])

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> Features:
        """Return the teacher's features for what the student sees, `(B, 3, H, W)`.

        Raises:
            SViTError: If it has none.
        """
        seen = self.see(pixel_values)
        outputs = self.model(pixel_values=seen, **self._arguments)
        states, pooled = outputs.last_hidden_state.float(), getattr(outputs, "pooler_output", None)
        grid = self._grid(states.shape, seen.shape)
        if states.dim() == 3:
            num_others = states.shape[1] - math.prod(grid)
            self.has_class_token = num_others > 0
            if self.has_class_token:
                pooled = states[:, 0]
            states = states[:, num_others:].transpose(1, 2).unflatten(2, grid)  # (B, C, H, W)
        if pooled is None:
            pooled = states.mean(dim=(2, 3))
        return Features(pooled.float().flatten(1), states)

    def _grid(self, shape: torch.Size, image_shape: torch.Size) -> tuple[int, int]:
        """Return the height and width of the map in a hidden state of some shape."""
        pixels = (image_shape[2], image_shape[3])
        height, width = (edge // patch for edge, patch in zip(pixels, self.patch_size, strict=True))
        if len(shape) == 4 and shape[2] * pixels[1] == shape[3] * pixels[0]:
            return shape[2], shape[3]
        if len(shape) == 3 and shape[1] >= height * width:
            return height, width
        if len(shape) == 3:
            # of a network that halves its map, such as Swin
            factor = math.isqrt(height * width // shape[1])
            if height % factor == 0 and width % factor == 0 and height * width == shape[1] * factor**2:
                return height // factor, width // factor
        raise SViTError(
            f"`{TEACHER}` is {self.options.teacher!r}, a {type(self.model).__name__}, whose last hidden state has the "
            f"shape {tuple(shape)} for an image of {pixels[0]} x {pixels[1]} pixels. That is neither a map nor one "
            "token for each patch."
        )

    def loss(self, output: StudentOutput, answers: Features) -> torch.Tensor:
        """Return how far the directions of projected features are from the teacher's, 1 - cosine, from 0 to 2.

        It is the mean of that of pooled features and that of patches. The teacher's map is resized to the student's.
        """
        size = (output.patches.shape[2], output.patches.shape[3])
        patches = answers.patches
        if patches.shape[2:] != size:
            patches = F.interpolate(patches, size, mode="bilinear", antialias=True)
        pooled = F.cosine_similarity(output.pooled.float(), answers.pooled, dim=1).mean()
        return 1 - (pooled + F.cosine_similarity(output.patches.float(), patches, dim=1).mean()) / 2

    def add_projections(self, student: nn.Module, seed: int) -> StudentWithProjections:
        """Return the student with projections, which are the same for the same seed.

        Raises:
            SViTError: If the student is no SViT classifier.
        """
        if not isinstance(student, SViTForImageClassification):
            raise SViTError(
                "`distillation.kind` is 'features', which is for SViT classifiers; this is a "
                f"{type(student).__name__}."
            )
        torch.manual_seed(seed)
        config = student.config
        projections = FeatureProjections((config.projection_dim, config.hidden_sizes[-1]), self.channels)
        return StudentWithProjections(student, projections.to(student.device))


def make_teacher(
    options: DistillationOptions, label_names: Sequence[str], processor: SViTImageProcessorPil, device: torch.device
) -> Teacher:
    """Load the teacher, and match its normalisation, and for answers its classes, with those of the student.

    Raises:
        SViTError: If it cannot be loaded, has no features, or does not know the same classes in the same order.
    """
    of_features = options.kind == "features"
    model_class = AutoModel if of_features else AutoModelForImageClassification
    loaded, differences = load_and_compare(options.teacher, model_class, argument=TEACHER)
    missing = differences.get("missing", [])
    if not of_features:
        require_weights(options.teacher, missing, TEACHER)
    scale, shift, image_size = _conversion(options, processor, device)
    if options.image_size:
        image_size = (options.image_size, options.image_size)
    teacher: Teacher
    if of_features:
        # of models for images and text, what is for images
        model = cast(nn.Module, getattr(loaded, "vision_model", loaded))
        take_out_of_file(model)
        teacher = FeatureTeacher(model.to(device), options, scale, shift, image_size)
        # a classifier's weights have no pooler, which nobody asks where there is a class token
        if teacher.has_class_token:
            missing = [name for name in missing if not name.startswith("pooler.")]
        require_weights(options.teacher, missing, TEACHER)
    else:
        _require_classes(options, class_names(loaded), label_names)
        model = cast(nn.Module, loaded)
        teacher = Teacher(model.to(device), options, scale, shift, image_size if options.image_size else None)
    known = (value for name, value in model.state_dict().items() if name not in differences.get("missing", []))
    teacher.sha256, teacher.revision = sha256_of_tensors(known), getattr(loaded.config, "_commit_hash", None)
    return teacher


def sha256_of_tensors(tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of some tensors, the same in whatever order and by whatever names a model has them."""
    content = (
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors
    )
    digests = sorted(hashlib.sha256(data).digest() for data in content)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _conversion(
    options: DistillationOptions, processor: SViTImageProcessorPil, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Return what turns the student's pixel values into the teacher's, `scale` and `shift`, and the teacher's size.

    Raises:
        SViTError: If the teacher's image processor does something else than to resize, cut out and normalise.
    """
    theirs = load_image_processor(options.teacher, TEACHER)
    is_normalized = getattr(theirs, "do_normalize", False)
    mean, std, their_mean, their_std = (
        torch.tensor(values, device=device)
        for values in (
            processor.image_mean,
            processor.image_std,
            theirs.image_mean if is_normalized else [0.0] * 3,
            theirs.image_std if is_normalized else [1.0] * 3,
        )
    )
    made = theirs(Image.new("RGB", _COLOR_SIZE, _COLOR), return_tensors="pt")["pixel_values"]
    expected = ((torch.tensor(_COLOR) / 255 - their_mean.cpu()) / their_std.cpu()).view(1, 3, 1, 1)
    if made.dim() != 4 or not torch.allclose(made, expected, atol=_COLOR_TOLERANCE):
        raise SViTError(
            f"`{TEACHER}` is {options.teacher!r}, whose {type(theirs).__name__} does something else to images than to "
            "resize them, cut out a part and normalise the channels by `image_mean` and `image_std`."
        )
    return std / their_std, (mean - their_mean) / their_std, (made.shape[2], made.shape[3])


def _require_classes(options: DistillationOptions, known: Sequence[str], label_names: Sequence[str]) -> None:
    """Refuse a teacher of other classes."""
    # made-up names say nothing about the order
    is_named = not all(name == f"LABEL_{index}" for index, name in enumerate(known))
    if len(known) != len(label_names) or (is_named and list(known) != list(label_names)):
        raise SViTError(
            f"`{TEACHER}` is {options.teacher!r}, whose {len(known)} classes ({known[0]!r}, ...) are not "
            f"the {len(label_names)} of the data ({label_names[0]!r}, ...) in the same order."
        )
