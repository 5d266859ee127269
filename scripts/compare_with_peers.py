# SPDX-License-Identifier: Apache-2.0
"""Train SViT and its peers of equal size from scratch on small data, each at its own best learning rate.

    python -m scripts.compare_with_peers --output-dir RUNS --data trashnet6 signdigits10 --epochs 12 6 --seeds 5

Every network is trained with every learning rate on four fifths of the training images, once, and the rate that is
best on the last fifth is its own. With it, all training images are learnt with every seed. Accuracies are those of
the test split after the last epoch, so that nothing is chosen by them, and leads those of the first network over the
others, seed by seed. One seed of all networks comes before the next, and the same command goes on after a stop. Run it
from the root of a checkout.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scripts.benchmark.networks import count_macs
from torch import nn

import svit_hf  # noqa: F401 - before transformers, which a torchvision of another torch would stop
from svit_hf.ablation.running import finished_report
from svit_hf.benchmark.report import align
from svit_hf.data.opening import open_source
from svit_hf.files import write_text
from svit_hf.recipes import smoke
from svit_hf.training.options import TrainingRecipe
from svit_hf.training.starting_model import make_model
from svit_hf.training.train import train


IMAGE_SIZE = 96
HEADINGS = ("data", "network", "parameters", "MACs", "rate", "accuracies, %", "mean", "spread", "lead", "images/s")


def _of_transformers(kind: str, **fields: Any) -> Callable[[TrainingRecipe, list[str]], nn.Module]:
    """Return what builds a classifier of Transformers for a recipe and the labels of its data."""

    def build(recipe: TrainingRecipe, labels: list[str]) -> nn.Module:
        import transformers

        torch.manual_seed(recipe.run.seed)
        config = getattr(transformers, f"{kind}Config")(num_labels=len(labels), drop_path_rate=0.05, **fields)
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return build


def _svit(recipe: TrainingRecipe, labels: list[str]) -> nn.Module:
    return make_model(recipe.model, labels, recipe.run.seed)


# about 0.36 M parameters each, four stages, and the same rate of dropped paths
NETWORKS: dict[str, Callable[[TrainingRecipe, list[str]], nn.Module]] = {
    "SViT": _svit,
    # windows that divide the grids of all stages
    "Swin": _of_transformers(
        "Swin", image_size=IMAGE_SIZE, embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=3
    ),
    # without layer scale, whose 1e-6 would keep so short a training from starting; the others have none either
    "ConvNeXt": _of_transformers(
        "ConvNext", hidden_sizes=[16, 32, 64, 96], depths=[2, 2, 4, 2], layer_scale_init_value=0.0
    ),
    "PVTv2": _of_transformers(
        "PvtV2",
        image_size=IMAGE_SIZE,
        hidden_sizes=[16, 32, 64, 80],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 2, 4, 8],
        mlp_ratios=[8, 8, 4, 4],
    ),
}


def recipe_for(path: str, epochs: int, rate: float, seed: int, validation_share: float) -> TrainingRecipe:
    """Return what all networks have in common: the smoke recipe at another size, without an average of weights."""
    base = smoke()
    return replace(
        base,
        name="peers",
        model=replace(
            base.model, image_size=IMAGE_SIZE, config={**base.model.config, "super_token_sizes": [4, 2, 1, 1]}
        ),
        data=replace(
            base.data,
            path=path,
            num_workers=0,
            validation_share=validation_share,
            eval_split=None if validation_share else "test",
        ),
        optimization=replace(
            base.optimization,
            epochs=epochs,
            batch_size=32,
            device_batch_size=32,
            learning_rate=rate,
            max_gradient_norm=5.0,
            ema_decay=0.0,
        ),
        run=replace(base.run, seed=seed, evaluate_every_epochs=epochs),
    )


def train_network(name: str, recipe: TrainingRecipe, run_dir: Path) -> dict[str, Any]:
    """Return the report of a run, which is carried out unless it is over."""
    report = finished_report(run_dir, recipe)
    if report is None:
        print(f"{name}, learning rate {recipe.optimization.learning_rate:g}: {run_dir}", flush=True)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        report = train(recipe, run_dir, model=NETWORKS[name](recipe, open_source(recipe.data, "train").label_names))
    return report


def accuracies_of_rates(
    name: str, recipe: Callable[..., TrainingRecipe], rates: list[float], folder: Path
) -> dict[float, tuple[float, float]]:
    """Return, for each learning rate, the accuracy on images kept from the training split, and the negative loss."""
    scores = {}
    for rate in rates:
        report = train_network(name, recipe(rate=rate, seed=0, validation_share=0.2), folder / f"rate-{rate:g}")
        metrics = report["metrics"]["raw"]
        scores[rate] = (metrics["accuracy"], -metrics["loss"])
    return scores


def row_of(
    data: str, name: str, recipe: TrainingRecipe, reports: list[dict[str, Any]], first: list[float]
) -> tuple[str, ...]:
    """Return a row of the table; `first` are the accuracies of the first network."""
    macs = count_macs(NETWORKS[name](recipe, reports[0]["data"]["label_names"]), IMAGE_SIZE)
    scores = accuracies(reports)
    return (
        data,
        name,
        f"{reports[0]['num_parameters']:,}",
        "?" if macs is None else f"{macs / 1e6:.1f} M",
        f"{recipe.optimization.learning_rate:g}",
        " ".join(f"{score:.1f}" for score in scores),
        *mean_and_spread(scores),
        "{} ({})".format(*mean_and_spread([one - other for one, other in zip(first, scores, strict=True)])),
        f"{fmean(report['images'] / report['seconds'] for report in reports):.0f}",
    )


def accuracies(reports: list[dict[str, Any]]) -> list[float]:
    """Return the accuracies of runs, in percent."""
    return [100 * report["metrics"]["raw"]["accuracy"] for report in reports]


def mean_and_spread(values: list[float]) -> tuple[str, str]:
    """Return the mean and the standard deviation, as texts."""
    return f"{fmean(values):.1f}", f"{stdev(values):.1f}" if len(values) > 1 else "?"


def main(words: list[str] | None = None) -> str:
    """Train what is missing, print and write the tables after each seed, and return them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--data", nargs="+", required=True, help="folders of images")
    parser.add_argument("--epochs", type=int, nargs="+", default=[15], help="of each data set, or of all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4, 1.5e-3, 4.5e-3])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args(words)
    epochs = options.epochs * len(options.data) if len(options.epochs) == 1 else options.epochs
    if len(epochs) != len(options.data) or options.seeds < 1:
        parser.error("`--epochs` needs one number, or one for each of `--data`; `--seeds` at least 1")
    torch.set_num_threads(1)
    searched = [("data", "network", *(f"{rate:g}" for rate in options.learning_rates))]
    done: list[tuple[str, ...]] = [HEADINGS]
    tables = ""
    for path, number in zip(options.data, epochs, strict=True):
        data, folder = Path(path).name, options.output_dir / Path(path).name
        recipe = partial(recipe_for, path, number)
        recipes: dict[str, Callable[..., TrainingRecipe]] = {}
        for name in options.networks:
            scores = accuracies_of_rates(name, recipe, options.learning_rates, folder / name)
            recipes[name] = partial(recipe, rate=max(scores, key=scores.__getitem__), validation_share=0.0)
            searched.append((data, name, *(f"{accuracy:.1%}" for accuracy, _ in scores.values())))
        reports: dict[str, list[dict[str, Any]]] = {name: [] for name in options.networks}
        rows: list[tuple[str, ...]] = []
        for seed in range(options.seeds):
            for name in options.networks:
                of_run = recipes[name](seed=seed)
                run_dir = folder / name / f"rate-{of_run.optimization.learning_rate:g}-seed-{seed}"
                reports[name].append(train_network(name, of_run, run_dir))
            first = accuracies(reports[options.networks[0]])
            rows = [row_of(data, name, recipes[name](seed=0), reports[name], first) for name in options.networks]
            tables = f"{align(searched)}\n\n{align([*done, *rows])}"
            print(tables, flush=True)
            write_text(options.output_dir / "table.txt", tables + "\n")
        done += rows
    return tables


if __name__ == "__main__":
    main()
