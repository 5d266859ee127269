# SPDX-License-Identifier: Apache-2.0
"""`svit-hf visualize`: the arguments; the work is in `pictures.py`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from transformers import PreTrainedModel

from svit_hf.errors import DataError, SViTError
from svit_hf.extras import require_extra
from svit_hf.files import require_new_folder
from svit_hf.progress import say
from svit_hf.visualization.options import DrawingOptions


@dataclass(kw_only=True)
class VisualizeCommand(DrawingOptions):
    """Draw super tokens, where a point looks, and what the classifier relies on, for pictures.

    Of a model for segmentation or detection: the super tokens of its SViT, and its masks or boxes on the picture.

    The output folder gets a sheet NAME.png for each picture, and index.html, one page that needs nothing else. A
    picture that cannot be read is named and passed over; the exit status is then 3.

    Args:
        model: A folder or an id of the Hub, or the folder of a training run, whose finished model it is then.
        images: Picture files, folders or globs of them.
        output_dir: The folder to write, new or empty.
        image_size: Edge, or height and width, of what the model sees, in pixels; its own if not given.
        crop_pct: Share of the resized picture's edge that the crop keeps; that of the model if not given.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...")]
    output_dir: Path
    image_size: int | tuple[int, int] | None = None
    crop_pct: float | None = None

    def run(self) -> int:
        """Draw, print what was written, and return the exit status.

        Raises:
            SViTError: If an argument is impossible.
            DataError: If no picture could be read.
        """
        # seconds pass while these are imported
        from transformers.utils import logging

        from svit_hf.evaluation.checkpoints import find_model, load_classifier, load_image_processor
        from svit_hf.evaluation.preprocessing import Preprocessing
        from svit_hf.tasks.models import backbone_of
        from svit_hf.tasks.saved_models import dense_head, open_task_model
        from svit_hf.visualization.pictures import find_pictures, visualize_pictures

        files = find_pictures(self.images)
        location = find_model(self.model)
        is_dense = dense_head(location) is not None
        if is_dense and (self.label or self.image_size or self.crop_pct):
            raise SViTError("`label`, `image_size` and `crop_pct` are for classifiers.")
        if "classifier" in self.parts and not is_dense:
            require_extra("visualize", "visualize")
        require_new_folder(self.output_dir, "output_dir")
        logging.disable_progress_bar()
        device = torch.accelerator.current_accelerator() or "cpu"
        options: DrawingOptions = self
        if is_dense:
            opened = open_task_model(location, device)
            model: PreTrainedModel = backbone_of(opened.model)
            draw = opened.draw
            # there is none
            options = replace(self, parts=tuple(part for part in self.parts if part != "classifier"))
        else:
            model, draw = load_classifier(location, device), None
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        preprocessing = Preprocessing(load_image_processor(location), size, self.crop_pct)
        written = visualize_pictures(model, preprocessing, files, self.output_dir, options, draw)
        for file, reason in written.broken:
            say(f"passed over {file}: {reason}")
        if written.page is None:
            raise DataError(f"none of {len(files)} pictures could be read.")
        print(f"{len(written.sheets)} sheets in {self.output_dir}; open {written.page}")  # noqa: T201 - the result
        return DataError.exit_code if written.broken else 0
