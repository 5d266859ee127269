# SPDX-License-Identifier: Apache-2.0
"""`svit-hf samplers`: which sampler keeps most of pictures and of a trained network, without training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from svit_hf.errors import DataError, SViTError
from svit_hf.files import require_writable, write_text


@dataclass(kw_only=True)
class SamplersCommand:
    """Compare super-token samplers on pictures, without the noise of training.

    Pixels, described by the 3x3 pixels around them, are sampled and spread again; with masks, super tokens are also
    compared with objects; with a trained vision transformer, all its layers attend among super tokens, and its
    features are compared with those of the model as it is. The random control looks at nothing.

    Args:
        data: Folder of parquet files with the column `image`, and `mask` if there are objects.
        split: Which of its splits.
        model: Folder of a ViT, DeiT, DINOv2 or SigLIP of Transformers.
        samplers: Names of samplers; all by default.
        cell_size: Edge of a cell, in pixels.
        model_cell_size: Edge of a cell, in patches of the model.
        num_iterations: Rounds of association and averaging.
        image_size: Height and width that pictures are resized to.
        limit: Number of pictures.
        output: A .json file for the values of every picture.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    split: str = "test"
    model: Path | None = None
    samplers: tuple[str, ...] = ()
    cell_size: int = 8
    model_cell_size: int = 2
    num_iterations: int = 1
    image_size: int = 224
    limit: int = 40
    output: Path | None = None

    def run(self) -> int:
        """Measure, print a table, write the file, and return the exit status.

        Raises:
            SViTError: If an argument is impossible or the model cannot be loaded.
            DataError: If there are no such pictures.
        """
        for name in ("cell_size", "model_cell_size", "num_iterations", "limit"):
            if getattr(self, name) < 1:
                raise SViTError(f"`{name}` is {getattr(self, name)}; it has to be at least 1.")
        if self.image_size < 16:
            raise SViTError(f"`image_size` is {self.image_size}; it has to be at least 16.")
        if self.output is not None:
            require_writable(self.output, "output")
        # seconds pass while these are imported
        from svit_hf.benchmark.report import align
        from svit_hf.model.super_tokens_svit import SUPER_TOKEN_SAMPLERS
        from svit_hf.progress import Progress
        from svit_hf.provenance import provenance
        from svit_hf.samplers.comparison import RANDOM, compare_samplers, read_examples, table_of
        from svit_hf.tasks.rows import no_rows, parquet_rows

        rows = parquet_rows(self.data, self.split)
        if rows is None:
            raise no_rows(self.data, self.split, f"{self.split}.parquet")
        examples = read_examples(rows, self.limit, self.image_size)
        if not examples:
            raise DataError(f"{str(self.data)!r} has no picture in split {self.split!r}.")
        with Progress(len(examples), "pictures") as progress:
            measured = compare_samplers(
                self.samplers or tuple(SUPER_TOKEN_SAMPLERS),
                examples,
                self.cell_size,
                self.num_iterations,
                None if self.model is None else self._load_model(self.model),
                self.model_cell_size,
                progress.advance,
            )
        print(f"{len(examples)} pictures; mean (standard deviation over pictures)")  # noqa: T201 - the result
        print(align(table_of(measured)))  # noqa: T201 - a program's result
        # the random one takes part there without being named
        names = ",".join(name for name in measured if name != RANDOM)
        over = f"--over super_token_sampler={names} --output-dir runs/samplers"
        print(  # noqa: T201
            "\nCompare them by training, on pictures with labels:\n\n"
            f"    svit-hf ablate --recipe smoke --data.path pictures {over}"
        )
        if self.output is not None:
            content = provenance(torch.device("cpu")) | {"measured": measured}
            write_text(self.output, json.dumps(content, indent=1) + "\n")
        return 0

    def _load_model(self, folder: Path) -> torch.nn.Module:
        from transformers import AutoModel

        from svit_hf.other_models import apply_super_tokens

        try:
            model = AutoModel.from_pretrained(folder).eval()
            apply_super_tokens(model, layers=()).remove()
        except (OSError, ValueError) as error:
            raise SViTError(f"`model` is {str(folder)!r}, which cannot be used: {error}") from error
        vision: torch.nn.Module = getattr(model, "vision_model", model)
        return vision
