# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a model was trained on, with which command, how good it is, and what it is not for.

The card of a training run says what the report of the run says, and nothing that it does not say.
"""

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from svit_hf.errors import SViTError
from svit_hf.provenance import versions
from svit_hf.urls import without_credentials


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
# of what an evaluation measures; counts and tables by class stay in the report
CARD_METRICS = (
    *("accuracy", "top5_accuracy", "mean_average_precision", "micro_f1", "macro_f1"),
    *("mean_iou", "mean_dice", "pixel_accuracy", "map", "map_50", "map_75"),
    *("loss", "calibration_error"),
)
# what models for segmentation and detection do with what they do not know
EVERY = {
    "semantic_segmentation": "Every pixel gets one of them, whatever it shows.",
    "instance_segmentation": "Objects of other classes are not found, or taken for one of these.",
    "detection": "Objects of other classes are not found, or taken for one of these.",
}
WEIGHTS = {"raw": "raw", "ema": "EMA"}
# "unknown" is the Hub's own identifier
UNKNOWN_LICENCE = "unknown"
HUB_DATA_SET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@[^/]*)?(?:/.*)?")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# paths that tell of the machine: absolute ones, and those that leave the working directory
LOCAL_PATH = re.compile(r"/|\\\\|~\w*[\\/]|[A-Za-z]:[\\/]|(?:.*[\\/])?\.\.[\\/]", re.DOTALL)


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
    """

    dataset_name: str
    dataset_id: str
    split: str
    num_images: int
    metrics: Mapping[str, float]
    weights: str = "these"


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
    """Return the entries of `model-index`, the metrics on the Hub; `tag` is that of the pipeline."""
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


def card_text_of_run(
    report: Mapping[str, Any], *, name: str | None = None, location: str = ".", licence: str | None = None
) -> CardText:
    """Return the card of what a training run made.

    Args:
        report: What `report.json` of the run holds.
        name: Name of the model; by default made of that of the data.
        location: What to give to `from_pretrained`; by default the folder that the card is in.
        licence: Identifier on the Hub of the licence of the weights; without it, the card says that none is stated.

    Raises:
        SViTError: If the report lacks something, which the message names.
    """
    try:
        return _card_text(_public(report), name, location, licence)
    except (KeyError, TypeError, AttributeError) as error:
        raise SViTError(
            f"`report` is not that of a training run: {type(error).__name__}: {error}. Expected is what `svit-hf "
            "train` writes to report.json."
        ) from error


def _card_text(report: Mapping[str, Any], name: str | None, location: str, licence: str | None) -> CardText:
    recipe, data, chosen = report["recipe"], report["data"], report["chosen"]
    evaluations = {weights: _evaluation(report, weights) for weights in report["metrics"]}
    if evaluations and chosen not in evaluations:
        raise SViTError(f"`report` says that {chosen!r} weights were chosen, and has metrics of {list(evaluations)}.")
    command = report["command"]
    start = recipe["model"]["name_or_path"]
    return CardText(
        name=name or f"svit-{_data_name(data).lower()}",
        location=location,
        summary=(
            f"An SViT {f'fine-tuned from {quoted(start)}' if start else 'trained from random weights'} on "
            f"{data['num_train']} images of {len(data['label_names'])} classes from {quoted(data['path'])}. "
            f"These are the {_weights_in_words(chosen)}."
        ),
        data=_data_in_words(report),
        command=command or "# started from Python: there is no command line",
        settings={
            "recipe": recipe["name"],
            "epochs completed": report["epoch"],
            "updates": report["update"],
            "device": report["device"],
            "training time": f"{report['seconds']:.0f} s",
            "commit of svit-hf": report["commit"] or "unknown",
        },
        evaluations=[evaluations[chosen]] if evaluations else [],
        comparisons=[evaluation for weights, evaluation in evaluations.items() if weights != chosen],
        limits=_limits(report, evaluations.get(chosen)),
        provenance=_provenance(recipe, data, licence),
        licence=licence or UNKNOWN_LICENCE,
        recipe=recipe,
        versions=report["versions"],
    )


def _public(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report without paths of this machine, of which the last part is left, and without credentials."""
    path, description = report["data"]["path"], report["data"]["description"]
    public: dict[str, Any] = _public_value(report)
    # names such as /m/0cat are no paths
    public["data"]["label_names"] = report["data"]["label_names"]
    public["data"]["description"] = _public_text(description.replace(path, _public_text(path)))
    if (command := report["command"]) is not None:
        # options may be joined with their values
        words = [word.partition("=") for word in shlex.split(command)]
        public["command"] = shlex.join(
            _public_text(name) + separator + _public_text(value) for name, separator, value in words
        )
    return public


def _public_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public_value(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_public_value(entry) for entry in value]
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    if "://" not in text and LOCAL_PATH.match(text):
        text = re.split(r"[\\/]", text.rstrip("\\/"))[-1] or "."
    return without_credentials(text)


def _evaluation(report: Mapping[str, Any], weights: str) -> Evaluation:
    data, metrics = report["data"], report["metrics"][weights]
    return Evaluation(
        dataset_name=_data_name(data),
        dataset_id=_hub_id(report) or _data_name(data),
        split=data["eval_split"],
        num_images=metrics.get("num_images", data["num_eval"]),
        metrics={name: metrics[name] for name in CARD_METRICS if metrics.get(name) is not None},
        weights=WEIGHTS[weights],
    )


def _hub_id(report: Mapping[str, Any]) -> str | None:
    """Return the id of the data set on the Hub, if it is certain that there is one: a folder may look like an id."""
    path = report["data"]["path"]
    if match := HUB_DATA_SET.fullmatch(path):
        return match[1]
    is_hub = report["recipe"]["data"].get("format") == "hub" and HUB_ID.fullmatch(path)
    return path if is_hub else None


def _data_name(data: Mapping[str, Any]) -> str:
    if match := HUB_DATA_SET.fullmatch(data["path"]):
        return match[1].rpartition("/")[2]
    # the last part that is no glob
    parts = [part for part in re.split(r"[/\\]", data["path"]) if part and not re.search(r"[*?\[]", part)]
    return parts[-1] if parts else "images"


def _data_in_words(report: Mapping[str, Any]) -> str:
    data, recipe = report["data"], report["recipe"]
    names = data["label_names"]
    few = ", ".join(map(escaped, names[:20])) + (f", and {len(names) - 20} more" if len(names) > 20 else "")
    lines = [
        f"{escaped(data['description'])}.",
        "",
        f"- trained on {data['num_train']} images of the split {escaped(data['train_split'])}",
        f"- {len(names)} classes: {few}",
    ]
    if report["metrics"]:
        lines.insert(3, f"- evaluated on {data['num_eval']} images of the split {escaped(data['eval_split'])}")
    if report["bad_images"]:
        lines.append(f"- images that could not be read and were skipped: {report['bad_images']}")
    if teacher := recipe.get("distillation", {}).get("teacher"):
        options, identity = recipe["distillation"], report.get("teacher", {})
        beside = "it" if options.get("weight") == 1 else "beside the labels, it"
        what = "features" if options.get("kind") == "features" else "answers"
        known = {"revision": identity.get("revision"), "SHA-256 of its weights": identity.get("sha256")}
        facts = "".join(f", {name} {value}" for name, value in known.items() if value)
        lines.append(f"- {beside} learnt from the {what} of another model, {quoted(teacher)}{facts}")
    return "\n".join(lines)


def _limits(report: Mapping[str, Any], evaluation: Evaluation | None) -> str:
    num_classes = len(report["data"]["label_names"])
    if (task := report["recipe"].get("task", {}).get("name", "classification")) != "classification":
        given = EVERY[task]
    elif report["recipe"]["data"].get("multi_label"):
        given = "A picture gets any number of them, each from a probability of 0.5 on."
    else:
        given = "Every picture gets one of them, whatever it shows."
    lines = [
        f"- It knows {num_classes} classes. {given}",
        "- Only what is in the table was measured: no other data, no robustness, no fairness.",
    ]
    if evaluation is None:
        return "\n".join([*lines, "- It was not evaluated."])
    chosen_by = "the checkpoint"
    if len(report["metrics"]) > 1:
        chosen_by += " and between raw weights and their moving average"
    lines.append(
        f"- The images of the evaluation also decided on {chosen_by}; on others, the numbers are likely to be lower."
    )
    interval = report["metrics"][report["chosen"]].get("accuracy_interval")
    if interval:
        lines.append(
            f"- {evaluation.num_images} images tell the accuracy only so well: the 95 % interval is {interval[0]:.4f} "
            f"to {interval[1]:.4f}."
        )
    return "\n".join(lines)


def _provenance(recipe: Mapping[str, Any], data: Mapping[str, Any], licence: str | None) -> str:
    start = recipe["model"]["name_or_path"]
    if start:
        origin = (
            f"The training started from the weights {quoted(start)}. Their licence is not recorded in the run: look "
            "it up there before you pass these weights on. The weights that the authors of SViT publish state none."
        )
    else:
        origin = (
            "The training started from random weights; the weights that the authors of SViT publish are not in it."
        )
    terms = (
        f"Whoever published this model states the licence {licence} for the weights."
        if licence
        else "No licence is stated for these weights."
    )
    return (
        f"{origin} {terms} The licence of the training data, {quoted(data['path'])}, is not recorded in the run. The "
        "code, svit-hf, is under the Apache-2.0 licence."
    )


def _weights_in_words(weights: str) -> str:
    return "moving average (EMA) of the weights" if weights == "ema" else "weights as they were trained (raw)"


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
