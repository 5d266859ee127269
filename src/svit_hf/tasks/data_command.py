# SPDX-License-Identifier: Apache-2.0
"""`svit-hf data inspect|shard`: look at images before training, and write them so that they stream well."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from svit_hf.data.options import DataFormat, DataOptions, ShardOptions
from svit_hf.errors import DataError, SViTError
from svit_hf.tasks.options import AnnotationOptions, TaskName
from svit_hf.urls import without_credentials


# the small one that trains each task
RECIPES = {
    "semantic_segmentation": "segment_semantic",
    "instance_segmentation": "segment_instance",
    "detection": "detect",
}


@dataclass
class SourceArguments:
    """Where images are.

    Args:
        source: A data set id of the Hub, parquet files as a file, a glob or a folder, tars likewise, or a folder of
            images with one folder per class.
        format: What the source is; auto looks.
        config_name: Configuration of a Hub data set that has several.
        image_column: Column of the images; found by default.
        label_column: Column of the labels; found by default. `json.label` is a field inside a column.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    format: DataFormat = "auto"
    config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def _options(self, streaming: bool | None = None, index: str | None = None) -> DataOptions:
        return DataOptions(
            path=self.source,
            format=self.format,
            config_name=self.config_name,
            image_column=self.image_column,
            label_column=self.label_column,
            streaming=streaming,
            index=index,
        )


@dataclass
class InspectCommand(SourceArguments):
    """Read every image once, and say what there is and which images are broken.

    Args:
        write_index: A JSON file to write, with the rows of each shard and the names of the classes; streams that do
            not know these themselves take it as `index`.
        num_workers: Processes that read and decode; 0 for this one alone.
    """

    write_index: Path | None = None
    num_workers: int = 0

    def run(self) -> int:
        """Inspect, print, and return the exit status: 3 if an image is broken, or a label is no class."""
        from svit_hf.data.inspection import inspect_source

        if self.num_workers < 0:
            raise SViTError(f"`num_workers` is {self.num_workers}; it has to be at least 0.")
        if self.write_index is not None and not self.write_index.absolute().parent.is_dir():
            raise SViTError(f"`write_index` is {str(self.write_index)!r}, in a folder that does not exist.")
        inspection = inspect_source(self._options(), self.num_workers)
        print(inspection.text())  # noqa: T201 - a program's result
        if self.write_index is not None:
            inspection.index().write(self.write_index)
        if inspection.is_usable:
            print(_train_on(without_credentials(self.source)))  # noqa: T201 - a program's result
        return 0 if inspection.is_usable else DataError.exit_code


@dataclass
class ShardCommand(SourceArguments):
    """Write all splits as parquet shards that stream well: mixed, of equal size, with small row groups.

    Masks and boxes, in whatever layout they are, are written as they are read; the options of annotations are in what
    is written.

    Args:
        output_dir: A new or an empty folder.
        shards: What shards look like.
        streaming: Read the source as a stream; see `svit-hf train`.
        index: What `svit-hf data inspect --write-index` wrote, for a stream that needs it.
        task: Of images that are annotated for segmentation or detection.
        labels: Names of the classes, with `task`; by default those that the data name.
        annotations: How masks and boxes are to be read, with `task`.
    """

    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT_DIR")] = Path("shards")
    shards: Annotated[ShardOptions, tyro.conf.arg(name="")] = field(default_factory=ShardOptions)
    streaming: bool | None = None
    index: str | None = None
    task: TaskName | None = None
    labels: tuple[str, ...] = ()
    annotations: AnnotationOptions = field(default_factory=AnnotationOptions)

    def run(self) -> int:
        """Write, say what was written, and return the exit status."""
        from svit_hf.data.shards import write_shards
        from svit_hf.tasks.shards import write_annotated_shards

        source = self._options(self.streaming, self.index)
        if self.task is not None:
            written = write_annotated_shards(
                self.task, source, self.output_dir, self.shards, self.labels, self.annotations
            )
        elif self.labels or self.annotations != AnnotationOptions():
            name = "labels" if self.labels else "annotations"
            raise SViTError(
                f"`{name}` is {getattr(self, name)}; it is about masks and boxes, and `task` is not given."
            )
        else:
            written = write_shards(source, self.output_dir, self.shards)
        for split, (files, num_images, bad_images) in written.items():
            megabytes = sum(file.stat().st_size for file in files) / 1e6
            line = f"{split}: {num_images} images in {len(files)} files, {megabytes:.1f} MB in {self.output_dir}"
            if bad_images:
                first = f"{bad_images[0].source}, row {bad_images[0].row}"
                line += f"; {len(bad_images)} that cannot be decoded were left out, the first is {first}"
            print(line)  # noqa: T201 - a program's result
        print(_train_on(str(self.output_dir), RECIPES[self.task] if self.task else "smoke"))  # noqa: T201 - a program's result
        return 0


def _train_on(path: str, recipe: str = "smoke") -> str:
    return f"\nTrain on them:\n\n    svit-hf train --recipe {recipe} --output-dir runs/{recipe} --data.path {path}"


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes)
@dataclass
class DataCommand:
    """Look at images before training, and write them as shards that stream well.

    Args:
        action: What to do.
    """

    action: Annotated[
        Annotated[InspectCommand, tyro.conf.subcommand("inspect")]
        | Annotated[ShardCommand, tyro.conf.subcommand("shard")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        """Do it, and return the exit status.

        Raises:
            SViTError: If a package is missing, or the source cannot be read.
        """
        if find_spec("datasets") is None:
            raise SViTError('`svit-hf data` needs datasets; install it with: pip install "svit-hf[train]"')
        return self.action.run()
