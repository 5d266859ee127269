# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a model was trained on, with which command, how good it is, and what it is not for."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]
from transformers import PreTrainedModel

from svit_hf.provenance import versions


ARCHITECTURE_FIELDS = (
    "image_size",
    "hidden_sizes",
    "depths",
    "num_attention_heads",
    "super_token_sizes",
    "num_sampling_iterations",
    "projection_dim",
)

# names on the Hub for the metrics of svit_hf.evaluation; others go by their own name
METRIC_TYPES = {"top5_accuracy": "accuracy", "micro_f1": "f1", "macro_f1": "f1"}

USE = """```python
from transformers import pipeline

$verb = pipeline("$tag", model="$location", trust_remote_code=True)
print($verb("picture.png"$arguments))
```

`trust_remote_code=True` runs the `*_svit.py` files beside the weights. Where svit-hf is installed, `import $package`
before these lines, and its own code is used instead."""
MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")
LOCATION = re.compile(r'(pipeline\("[a-z-]+", model=")[^"\n]*(?=")|(`svit-hf doctor )[^`\n]*(?=`)')
# of pipelines: what to call the pipeline in an example
VERBS = {"image-classification": "classify", "image-segmentation": "segment", "object-detection": "detect"}


@dataclass(frozen=True)
class Evaluation:
    """Quality of a model on one data set.

    Attributes:
        dataset_name: What people call the data set.
        dataset_id: Its id on the Hub, or a name of the same form.
        split: The part of it that was used.
        num_images: How many images that is.
        metrics: Values by name, such as `{"accuracy": 0.836}`.
        weights: What was evaluated, in the words of the card.
        task_id: Name of the task in the data set's `eval.yaml`, where `dataset_id` is a data set of the Hub.
    """

    dataset_name: str
    dataset_id: str
    split: str
    num_images: int
    metrics: Mapping[str, float]
    weights: str = "these"
    task_id: str | None = None


@dataclass(frozen=True)
class CardText:
    """Content of a card beyond what the model itself tells; all texts are Markdown.

    Attributes:
        name: Name of the model.
        location: What to give to `from_pretrained`: a folder, or an id on the Hub.
        summary: A sentence or two on top.
        data: What it was trained on: which images, how many, from where, how they were split.
        command: The command that trained it.
        settings: Settings of the training run, by name.
        evaluations: How good it is.
        comparisons: How good other weights of the same run are; the card's metadata leave them out.
        limits: What it is not for.
        provenance: Where weights and data come from, and under which terms they are.
        licence: Identifier on the Hub of the licence of the weights.
        tags: Tags beside those that every SViT gets.
        recipe: The resolved recipe of the training run, if there is one.
        versions: Packages that trained it; by default those of this process.
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
    comparisons: Sequence[Evaluation] = field(default=())
    recipe: Mapping[str, object] | None = None
    versions: Mapping[str, str] | None = None


def pipeline_tag(model: PreTrainedModel) -> str:
    """Return the name of the pipeline of Transformers that a model is for."""
    name = type(model).__name__
    if "ObjectDetection" in name:
        return "object-detection"
    return "image-segmentation" if "Segmentation" in name else "image-classification"


def build_model_card(model: PreTrainedModel, text: CardText) -> ModelCard:
    """Write the card of a classifier, or of a model for segmentation or detection.

    Returns:
        A card whose metadata hold the evaluations as `model-index`; `.save(path)` writes it.
    """
    config: Any = model.config
    # of dense models, the SViT under the head
    backbone = getattr(config, "backbone_config", config)
    is_dense, tag = backbone is not config, pipeline_tag(model)
    architecture = {name: getattr(backbone, name) for name in ARCHITECTURE_FIELDS}
    if is_dense:
        architecture = {"head": type(model).__name__, **architecture}
    # heads of masks answer with instances otherwise
    is_semantic = getattr(config, "svit_task", None) == "semantic_segmentation"
    use = Template(USE).substitute(
        location=text.location,
        tag=tag,
        verb=VERBS[tag],
        package="svit_hf.tasks" if is_dense else "svit_hf",
        arguments=', subtask="semantic"' if is_semantic else "",
    )
    template = resources.files("svit_hf.hub").joinpath("model_card_template.md").read_text(encoding="utf-8")
    body = Template(template).substitute(
        name=escaped(text.name),
        use=use,
        location=text.location,
        summary=text.summary,
        num_parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        num_labels=config.num_labels,
        architecture=_table("field of `SViTConfig`", architecture),
        data=text.data,
        command=_fenced("bash", text.command),
        settings=_table("setting", dict(text.settings) | dict(text.versions or versions())),
        recipe=_recipe(text.recipe),
        evaluation=_evaluation_table([*text.evaluations, *text.comparisons]),
        limits=text.limits,
        provenance=text.provenance,
    )
    results = [result for evaluation in text.evaluations for result in eval_results(evaluation, tag)]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        license=text.licence,
        tags=["svit", "vision", *text.tags],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=text.name,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def escaped(text: str) -> str:
    """Return a text from outside, such as the name of a class, as Markdown that shows it and does nothing else.

    It stays on its line, so that it is no heading; tags, links, pictures, tables and emphasis are shown as characters.
    """
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def quoted(text: str) -> str:
    """Return a text from outside between backticks, on one line."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def with_location(card: str, location: str) -> str:
    """Return a card whose lines of code load the model from another place."""
    return LOCATION.sub(lambda found: f"{found[1] or found[2]}{location}", card)


def eval_results(evaluation: Evaluation, tag: str) -> list[EvalResult]:
    """Return the entries of `model-index`, the older form of metrics on the Hub; `tag` is that of the pipeline."""
    return [
        EvalResult(
            task_type=tag,
            dataset_type=evaluation.dataset_id,
            dataset_name=evaluation.dataset_name,
            dataset_split=evaluation.split,
            metric_type=METRIC_TYPES.get(name, name),
            metric_name=_words(name),
            metric_value=value,
        )
        for name, value in evaluation.metrics.items()
    ]


def eval_result_files(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Return the files of `.eval_results/`, the newer form, which the Hub shows on the pages of benchmarks.

    A file has one number for each task of one data set of the Hub: the accuracy. Other data sets have no place there.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for evaluation in evaluations:
        if evaluation.task_id is not None and "accuracy" in evaluation.metrics:
            entry = EvalResultEntry(
                dataset_id=evaluation.dataset_id,
                task_id=evaluation.task_id,
                value=evaluation.metrics["accuracy"],
                notes=f"top-1 accuracy, split {evaluation.split}, {evaluation.num_images} images",
            )
            entries.setdefault(evaluation.dataset_id, []).append(entry)
    return {
        f".eval_results/{dataset_id.replace('/', '--')}.yaml": yaml_dump(eval_result_entries_to_yaml(results))
        for dataset_id, results in entries.items()
    }


def evaluation_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """Return the rows of the card's table: what was measured, and the number; joined they are the row."""
    return [
        (
            f"| {escaped(evaluation.dataset_name)} | {escaped(evaluation.split)} | {escaped(evaluation.weights)} "
            f"| {evaluation.num_images} | {escaped(_words(name))} | ",
            f"{value:.4f} |",
        )
        for evaluation in evaluations
        for name, value in evaluation.metrics.items()
    ]


def _evaluation_table(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "It was not evaluated."
    rows = ["".join(row) for row in evaluation_rows(evaluations)]
    return "\n".join(["| data | split | weights | images | metric | value |", "|---|---|---|---|---|---|", *rows])


def _recipe(recipe: Mapping[str, object] | None) -> str:
    if recipe is None:
        return ""
    return f"\n\nThe recipe, with every setting:\n\n{_fenced('json', json.dumps(recipe, indent=2))}"


def _table(heading: str, values: Mapping[str, object]) -> str:
    rows = [f"| {name} | {escaped(value) if isinstance(value, str) else value} |" for name, value in values.items()]
    return "\n".join([f"| {heading} | value |", "|---|---|", *rows])


def _fenced(language: str, code: str) -> str:
    # longer than any fence in the code
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}{language}\n{code}\n{fence}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("top", "top-")
