# SPDX-License-Identifier: Apache-2.0
"""`svit-hf convert`: an official checkpoint becomes a folder that Transformers loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from svit_hf.convert.architecture import FIELDS_WITHOUT_SHAPE, VariantName
from svit_hf.convert.downloading import fetch_checkpoint
from svit_hf.convert.official import REFERENCE_TOLERANCE, ConversionReport, WeightsName, convert_official_checkpoint
from svit_hf.errors import ConversionError
from svit_hf.files import read_json, read_text


@dataclass
class ConvertCommand:
    """Convert an official SViT checkpoint (.pth) to a folder that Transformers loads.

    A checkpoint that is an address is downloaded beside the output folder first, by gdown, and kept there; what breaks
    off goes on when the same command is given again. Nothing in the checkpoint is executed. Missing or unknown
    weights, or weights of the wrong shape, are errors, and nothing is written then.

    Args:
        checkpoint: The official .pth file, or its address: http, https, or a link to a file in Google Drive.
        output_dir: The folder to write: config.json, model.safetensors, preprocessor_config.json.
        variant: The published model that the checkpoint has to be; auto recognises it by widths and depths.
        config: A JSON file with fields of SViTConfig, which win over everything else. Where the checkpoint is no
            published model it has to give what shapes do not tell: num_attention_heads, super_token_sizes and
            num_sampling_iterations.
        weights: The weights to take: the trained ones, or their moving average.
        image_size: Edge, in pixels, of the images that the model was trained with; preprocessing follows from it.
        labels: A text file with the names of the classes in order, one per line.
        reference: A safetensors file with pixel_values and the logits that they have to give.
        tolerance: Largest relative error of these logits.
        overwrite: Replace files of the same names in the output folder; others stay.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT_DIR")]
    variant: VariantName = "auto"
    config: Path | None = None
    weights: WeightsName = "model"
    image_size: int = 224
    labels: Path | None = None
    reference: Path | None = None
    tolerance: float = REFERENCE_TOLERANCE
    overwrite: bool = False

    def run(self) -> int:
        """Convert, say what was done, and return the exit status.

        Raises:
            ConversionError: If something does not fit; nothing is written then.
        """
        fields: dict[str, Any] = {"image_size": self.image_size}
        if self.labels is not None:
            labels = read_text(self.labels, "labels").splitlines()
            fields["id2label"] = dict(enumerate(labels))
            fields["label2id"] = {label: index for index, label in enumerate(labels)}
        if self.config is not None:
            fields |= _read_fields(self.config)
        report = convert_official_checkpoint(
            fetch_checkpoint(self.checkpoint, self.output_dir),
            self.output_dir,
            weights=self.weights,
            variant=self.variant,
            config=fields,
            reference=self.reference,
            tolerance=self.tolerance,
            overwrite=self.overwrite,
        )
        use = f'Use it: svit-hf predict {self.output_dir} "pictures/*.jpg"'
        print(f"{_summary(report)}\n\n{use}")  # noqa: T201 - a program's result
        return 0


def _summary(report: ConversionReport) -> str:
    config = report.config
    compared = "not compared" if report.reference_error is None else f"relative error {report.reference_error:.2e}"
    lines = {
        "architecture": f"SViT {report.variant}" if report.variant else "SViT, none of the published models",
        **{f"  {name}": getattr(config, name) for name in ("hidden_sizes", "depths", *FIELDS_WITHOUT_SHAPE)},
        "weights": f"{report.source}, {report.num_parameters / 1e6:.2f} M parameters",
        "left behind": f"{len(report.dropped)} constant tensors, attn.unfold.weights and attn.fold.weights",
        "classes": config.num_labels,
        "image size": config.image_size,
        "reference": compared,
        "written to": report.output_dir,
    }
    return "\n".join(f"{name:<26} {value}" for name, value in lines.items())


def _read_fields(path: Path) -> dict[str, Any]:
    fields = read_json(path, "config")
    if not isinstance(fields, dict):
        raise ConversionError(
            f"`config` is {str(path)!r}, which holds a {type(fields).__name__}; expected is an object."
        )
    return fields
