# SPDX-License-Identifier: Apache-2.0
"""Train semantic segmentation with one recipe on several backbones or heads, and compare them seed by seed.

    python -m scripts.compare_dense --output-dir RUNS --data cells --labels background cell --binary \
        --networks random FOLDER Swin ConvNeXt --metric iou_cell --seeds 0 1 2

A network is "random", which is a tiny SViT from random weights; a folder or Hub id of an SViT, whose weights it takes;
or "Swin" or "ConvNeXt", networks of Transformers of the same number of parameters, from random weights. A colon and
the name of a head may follow, `random:mask2former`; otherwise it is UperNet. Everything else is the recipe
`segment_semantic`. Numbers are those of the evaluation split after the last epoch, with averaged weights; a difference
is to the first network, of the same seed. One seed of all networks comes before the next, and the same command goes on
after a stop. Run it from the root of a checkout.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

import svit_hf  # noqa: F401 - before transformers, which a torchvision of another torch would stop
from svit_hf.ablation.running import finished_report
from svit_hf.benchmark.report import align
from svit_hf.files import write_text
from svit_hf.recipes import segment_semantic
from svit_hf.tasks.heads import IGNORED
from svit_hf.tasks.options import AnnotationOptions
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.train import train


# about as many parameters as the tiny SViT, 1.5 million, in four stages
PEERS: dict[str, dict[str, Any]] = {
    "Swin": {"embed_dim": 32, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0},
    # without layer scale, whose 1e-6 would keep so short a training from starting; the others have none either
    "ConvNeXt": {"hidden_sizes": [32, 64, 128, 192], "depths": [2, 2, 5, 2], "layer_scale_init_value": 0.0},
}
HEADINGS = ("network", "parameters", "by seed", "mean", "spread", "difference", "its spread", "processor seconds")


def recipe_for(options: argparse.Namespace, network: str, seed: int) -> TrainingRecipe:
    """Return what all networks have in common, and the backbone's weights and the head."""
    base = segment_semantic()
    backbone, _, head = network.partition(":")
    weights = "" if backbone in ("random", *PEERS) else backbone
    return replace(
        base,
        name="compare_dense",
        model=replace(base.model, name_or_path=weights, image_size=options.image_size),
        data=replace(base.data, path=str(options.data), num_workers=0),
        task=replace(
            base.task,
            head=head,
            width=options.width,
            head_options=json.loads(options.head_options) if head else {},
            labels=tuple(options.labels),
            annotations=AnnotationOptions(is_binary=options.binary),
            crop_size=options.crop_size,
        ),
        augmentation=replace(base.augmentation, scale=tuple(options.scale), color_jitter=options.color),
        optimization=replace(
            base.optimization,
            epochs=options.epochs,
            warmup_epochs=options.epochs / 10,
            learning_rate=options.learning_rate,
        ),
        run=replace(base.run, seed=seed, evaluate_every_epochs=options.epochs),
    )


def make_peer(name: str, recipe: TrainingRecipe) -> nn.Module:
    """Return UperNet on a backbone of Transformers, from random weights, with the sizes that it has on an SViT."""
    import transformers

    torch.manual_seed(recipe.run.seed)
    fields, labels = PEERS[name], recipe.task.labels
    kind = "ConvNext" if name == "ConvNeXt" else name
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = getattr(transformers, f"{kind}Config")(out_features=stages, **fields)
    channels = fields.get("hidden_sizes") or [fields["embed_dim"] * 2**stage for stage in range(4)]
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=recipe.task.width,
        auxiliary_in_channels=channels[-2],
        auxiliary_channels=recipe.task.width // 2,
        loss_ignore_index=IGNORED,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return transformers.UperNetForSemanticSegmentation(config)


def train_network(network: str, recipe: TrainingRecipe, run_dir: Path) -> dict[str, Any]:
    """Return the report of a run, which is carried out unless it is over, and the seconds of the processor it took."""
    report, clock = finished_report(run_dir, recipe), run_dir / "processor_seconds.json"
    if report is None:
        print(f"{network}, seed {recipe.run.seed}: {run_dir}", flush=True)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        started = time.process_time()
        report = train(recipe, run_dir, model=make_peer(network, recipe) if network in PEERS else None)
        write_text(clock, json.dumps(time.process_time() - started))
    return report | {"processor_seconds": json.loads(clock.read_text())}


def rows_of(reports: dict[str, list[dict[str, Any]]], metric: str) -> list[tuple[str, ...]]:
    """Return the rows of the table, one for each network."""
    scores = {network: [report["metrics"]["ema"][metric] for report in those] for network, those in reports.items()}
    first = next(iter(scores.values()))
    rows = []
    for network, values in scores.items():
        differences = [value - other for value, other in zip(values, first, strict=True)]
        rows.append(
            (
                network,
                f"{reports[network][0]['num_parameters']:,}",
                " ".join(f"{value:.3f}" for value in values),
                f"{fmean(values):.3f}",
                f"{stdev(values):.3f}" if len(values) > 1 else "?",
                f"{fmean(differences):+.3f}",
                f"{stdev(differences):.3f}" if len(values) > 1 else "?",
                f"{fmean(report['processor_seconds'] for report in reports[network]):.0f}",
            )
        )
    return rows


def main(words: list[str] | None = None) -> str:
    """Train what is missing; print, write and return the table after each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with the splits train and test")
    parser.add_argument("--labels", nargs="+", required=True, help="names of the classes, in their order")
    parser.add_argument("--binary", action="store_true", help="every value of a mask but 0 is class 1")
    parser.add_argument("--networks", nargs="+", required=True)
    parser.add_argument("--metric", default="mean_iou", help="for example iou_NAME, of one class")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=32, help="channels of the head")
    parser.add_argument("--head-options", default="{}", help="of heads that are named, as JSON")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--crop-size", type=int, default=128)
    parser.add_argument("--scale", type=float, nargs=2, default=(0.06, 0.2), help="share of the area that is cropped")
    parser.add_argument("--color", type=float, default=0.4)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    reports: dict[str, list[dict[str, Any]]] = {network: [] for network in options.networks}
    table = ""
    for seed in options.seeds:
        for place, network in enumerate(options.networks):
            run_dir = options.output_dir / f"{place}-{Path(network).name.replace(':', '-')}-seed-{seed}"
            reports[network].append(train_network(network, recipe_for(options, network, seed), run_dir))
        table = align([HEADINGS, *rows_of(reports, options.metric)])
        print(table, flush=True)
        write_text(options.output_dir / "table.txt", table + "\n")
    return table


if __name__ == "__main__":
    main()
