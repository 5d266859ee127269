# SPDX-License-Identifier: Apache-2.0
"""Where training is, and whether a checkpoint belongs to the same training.

What may change between two parts of a run is said where an option is (`changes_freely`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svit_hf.data.sources import differences
from svit_hf.errors import SViTError
from svit_hf.option_fields import freely_changing
from svit_hf.training.checkpointing import PROGRESS
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.recipe_files import flatten, from_json, to_json


@dataclass(frozen=True)
class Setting:
    """What fixes the sequence of updates, besides the recipe.

    Attributes:
        micro_batches: Micro-batches of an update, which any number of ranks that divides them may share.
        updates_per_epoch: Updates of an epoch.
        num_ranges: Ranges that a stream is read in; 0 of indexed data.
        batch_norm_ranks: Ranks whose images a batch norm sees together: 1 unless norms are synchronised.
        data: What the training images and those of the evaluation are recognised by, where there are any.
        teacher: SHA-256 of the teacher's weights; empty without one.
    """

    micro_batches: int
    updates_per_epoch: int
    num_ranges: int
    batch_norm_ranks: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""


@dataclass
class Progress:
    """What a run knows besides weights and optimizer: all of it is in progress.json.

    Attributes:
        update: Updates that were made or skipped.
        evaluated_update: The update after which the last evaluation was.
        num_images: Images read, over all ranks.
        num_bad_images: Those that could not be decoded.
        skipped_updates: Updates that were skipped because something was not finite.
        skipped_in_a_row: The last ones among them, without a good one between.
        window_loss: Sum of the losses of the images since the last row of the log.
        window_images: Their number.
        window_skipped: Updates skipped since then.
        log_size: Bytes of the log.
        seconds: Duration of the run so far, of all its parts.
        best: What was evaluated best: `update`, `epoch`, `chosen` (raw or ema), and `metrics` and `sha256` of both
            weights.
    """

    update: int = 0
    evaluated_update: int = 0
    num_images: int = 0
    num_bad_images: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    window_loss: float = 0.0
    window_images: int = 0
    window_skipped: int = 0
    log_size: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = field(default=None)

    def save(self, folder: Path, recipe: TrainingRecipe, setting: Setting) -> None:
        """Write progress.json of a checkpoint."""
        content = {"progress": asdict(self), "setting": asdict(setting), "recipe": to_json(recipe)}
        (folder / PROGRESS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class SavedProgress:
    """Content of a checkpoint's progress.json."""

    progress: Progress
    setting: Setting
    recipe: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "SavedProgress":
        """Read it; the folder is known to be valid.

        Raises:
            SViTError: If another version of this package wrote it.
        """
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        try:
            return cls(Progress(**content["progress"]), Setting(**content["setting"]), content["recipe"])
        except (KeyError, TypeError) as error:
            raise SViTError(
                f"the checkpoint {str(folder)!r} was written by another version of svit-hf, and its run cannot go on "
                f"here ({error}). Start another run from its weights: `model.name_or_path={folder / 'raw'}`."
            ) from error

    def differences(self, recipe: TrainingRecipe, setting: Setting) -> list[str]:
        """Return in what the checkpoint's run differs from this one, such that it would not be the same training."""
        # by way of a recipe: one that was written before there was an option has its default
        before = flatten(to_json(from_json(self.recipe))) | asdict(self.setting)
        now = flatten(to_json(recipe)) | asdict(setting)
        saved_data, found_data = before.pop("data"), now.pop("data")
        saved_teacher, found_teacher = before.pop("teacher"), now.pop("teacher")
        free = freely_changing(TrainingRecipe)
        lines = [
            f"{name}: {before.get(name)!r} there, {now.get(name)!r} here"
            for name in sorted(before.keys() | now.keys())
            if name not in free and before.get(name) != now.get(name)
        ]
        for split in sorted(saved_data.keys() & found_data.keys()):
            lines += [f"{split} data: {line}" for line in differences(saved_data[split], found_data[split])]
        # one that comes or goes is told by the recipe
        if saved_teacher and found_teacher and saved_teacher != found_teacher:
            lines.append(f"distillation.teacher: weights with the SHA-256 {saved_teacher} there, {found_teacher} here")
        return lines

    def moved_to(self, setting: Setting) -> Progress:
        """Return the progress for a run whose epochs have another number of updates: the same share of the epochs."""
        share = self.progress.update / self.setting.updates_per_epoch
        update = int(share * setting.updates_per_epoch)
        evaluated = update if self.progress.evaluated_update == self.progress.update else 0
        return Progress(**asdict(self.progress) | {"update": update, "evaluated_update": evaluated})
