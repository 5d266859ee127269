# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a model was trained on, with which command, how good it is, and what it is not for."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from string import Template

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from svit_hf.model.modeling_svit import SViTForImageClassification


ARCHITECTURE_FIELDS = (
    "image_size",
    "hidden_sizes",
    "depths",
    "num_attention_heads",
    "super_token_sizes",
    "num_sampling_iterations",
    "projection_dim",
)
PACKAGES = ("svit-hf", "torch", "transformers")

# names on the Hub for the metrics of svit_hf.evaluation; others go by their own name
METRIC_TYPES = {"top5_accuracy": "accuracy"}


@dataclass(frozen=True)
class Evaluation:
    """Hold how good a model is on one data set.

    Attributes:
        dataset_name: What people call the data set.
        dataset_id: Its id on the Hub, or a name of the same form.
        split: The part of it that was used.
        num_images: How many images that is.
        metrics: Values by name, such as `{"accuracy": 0.836}`.
    """

    dataset_name: str
    dataset_id: str
    split: str
    num_images: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CardText:
    """Hold what a card says beyond what the model itself tells; all texts are Markdown.

    Attributes:
        name: Name of the model.
        location: What to give to `from_pretrained`: a folder, or an id on the Hub.
        summary: A sentence or two on top.
        data: What it was trained on: which images, how many, from where, how they were split.
        command: The command that trained it.
        settings: Settings of the training run, by name.
        evaluations: How good it is.
        limits: What it is not for.
        provenance: Where weights and data come from, and under which terms they are.
        licence: Identifier on the Hub of the licence of the weights.
        tags: Tags beside those that every SViT gets.
    """

    name: str
    location: str
    summary: str
    data: str
    command: str
    settings: Mapping[str, object]
    evaluations: Sequence[Evaluation]
    limits: str
    provenance: str
    licence: str = "apache-2.0"
    tags: Sequence[str] = field(default=())


def build_model_card(model: SViTForImageClassification, text: CardText) -> ModelCard:
    """Write the card of a model.

    Returns:
        A card whose metadata hold the evaluations as `model-index`; `.save(path)` writes it.
    """
    config = model.config
    versions = {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    body = _template().substitute(
        name=text.name,
        location=text.location,
        summary=text.summary,
        num_parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        num_labels=config.num_labels,
        architecture=_table("field of `SViTConfig`", {name: getattr(config, name) for name in ARCHITECTURE_FIELDS}),
        data=text.data,
        command=text.command,
        settings=_table("setting", dict(text.settings) | versions),
        evaluation=_evaluation_table(text.evaluations),
        limits=text.limits,
        provenance=text.provenance,
    )
    results = [result for evaluation in text.evaluations for result in _eval_results(evaluation)]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=text.licence,
        tags=["svit", "vision", *text.tags],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=text.name,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def _template() -> Template:
    return Template(resources.files("svit_hf.hub").joinpath("model_card_template.md").read_text(encoding="utf-8"))


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=evaluation.dataset_id,
            dataset_name=evaluation.dataset_name,
            dataset_split=evaluation.split,
            metric_type=METRIC_TYPES.get(name, name),
            metric_name=_words(name),
            metric_value=value,
        )
        for name, value in evaluation.metrics.items()
    ]


def _evaluation_table(evaluations: Sequence[Evaluation]) -> str:
    rows = [
        f"| {evaluation.dataset_name} | {evaluation.split} | {evaluation.num_images} | {_words(name)} | {value:.4f} |"
        for evaluation in evaluations
        for name, value in evaluation.metrics.items()
    ]
    return "\n".join(["| data | split | images | metric | value |", "|---|---|---|---|---|", *rows])


def _table(heading: str, values: Mapping[str, object]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join([f"| {heading} | value |", "|---|---|", *rows])


def _words(name: str) -> str:
    return name.replace("_", " ").replace("top", "top-")
