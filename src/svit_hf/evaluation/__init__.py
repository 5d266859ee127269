# SPDX-License-Identifier: Apache-2.0
"""Evaluate and predict: with a folder or a model, from a command or from Python.

`evaluate_model` and `predict_images` do everything for a data set or pictures; `evaluate_batches` counts what a loop
of your own gives it. They are imported when they are first asked for: they need the packages of `svit-hf[train]`, and
the commands say so where these are missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from svit_hf.evaluation.classification import evaluate_batches
    from svit_hf.evaluation.model_evaluation import ModelEvaluation, evaluate_model
    from svit_hf.evaluation.parts import Predictions
    from svit_hf.evaluation.prediction import predict_images
    from svit_hf.evaluation.report import ClassificationReport

__all__ = [
    "ClassificationReport",
    "ModelEvaluation",
    "Predictions",
    "evaluate_batches",
    "evaluate_model",
    "predict_images",
]

_MODULES = {
    "ClassificationReport": "report",
    "ModelEvaluation": "model_evaluation",
    "Predictions": "parts",
    "evaluate_batches": "classification",
    "evaluate_model": "model_evaluation",
    "predict_images": "prediction",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
