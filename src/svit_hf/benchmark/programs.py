# SPDX-License-Identifier: Apache-2.0
"""Exported programs as contestants: what `svit-hf export` writes, run in this process on a CPU."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import torch
from torch import nn

from svit_hf.benchmark.networks import made_up_images
from svit_hf.export.check import Predict
from svit_hf.export.exporting import ExportOptions, export_classifier
from svit_hf.export.loading import load_program
from svit_hf.model.modeling_svit import SViTForImageClassification


# half of them give the ranges of activations, if the format wants any
_NUM_PICTURES = 16


class ExportedClassifier(nn.Module):
    """Run an exported program where a classifier is expected.

    Args:
        predict: Maps images to logits.
        num_bytes: Size of the program with its weights: what a runtime keeps of it, nobody tells.
    """

    def __init__(self, predict: Predict, num_bytes: int):
        super().__init__()
        self.predict = predict
        self.num_bytes = num_bytes

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits, `(B, num_labels)`."""
        return self.predict(pixel_values)


class Programs:
    """Export every model once, for all batch and image sizes, and delete the programs at the end.

    Args:
        say: Takes lines about progress.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.say = say
        self._folder = TemporaryDirectory(prefix="svit-hf-benchmark-")
        self._loaded: dict[tuple[str, ExportOptions], ExportedClassifier] = {}

    def __enter__(self) -> "Programs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # runtimes map the files of weights
        self._loaded.clear()
        self._folder.cleanup()

    def load(self, model: SViTForImageClassification, options: ExportOptions) -> ExportedClassifier:
        """Return the program of a model.

        Args:
            model: In float32, on the CPU; it stays as it is.
            options: What to export.

        Raises:
            SViTError: If packages are missing, or the program differs from the model.
        """
        key = _fingerprint(model), options
        if key not in self._loaded:
            self.say(f"  exporting {options.format}, quantize {options.quantize}, which takes minutes")
            folder = Path(self._folder.name) / str(len(self._loaded))
            images = None if options.quantize == "none" else _pictures_for(model)
            report = export_classifier(model, folder, options, images=images)
            self._loaded[key] = ExportedClassifier(load_program(folder), report.num_bytes)
        return self._loaded[key]


def _pictures_for(model: SViTForImageClassification) -> torch.Tensor:
    """Return images of the kind that contestants are compared on."""
    size = model.config.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made_up_images(_NUM_PICTURES, size if isinstance(size, int) else size[0], model.config.num_channels)


def _fingerprint(model: SViTForImageClassification) -> str:
    """Tell models apart by config and weights: each case builds its own, and many of them are equal."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
