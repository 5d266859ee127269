# SPDX-License-Identifier: Apache-2.0
"""Train this SViT and the official operators on the same data, from the same weights, in the same loop.

    python -m scripts.compare_with_official_operators --output-dir RUNS --seeds 0 1 --recipe smoke --data.path IMAGES

The other options are those of `svit-hf train`. Prints the accuracies side by side. Run it from the root of a checkout.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from scripts.benchmark.official_operators import with_official_operators

from svit_hf.data.opening import open_source
from svit_hf.recipes.command import TrainCommand
from svit_hf.training.starting_model import make_model
from svit_hf.training.train import train


def main() -> None:
    """Train all runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments, options = parser.parse_known_args()
    command = TrainCommand.parse([*options, "--output-dir", str(arguments.output_dir)], parser.prog)

    rows = []
    for seed in arguments.seeds:
        recipe = replace(command.options, run=replace(command.options.run, seed=seed))
        ours = make_model(recipe.model, open_source(recipe.data, "train").label_names, seed)
        for name, model in (("ours", ours), ("official", with_official_operators(ours))):
            report = train(recipe, arguments.output_dir / f"{name}-{seed}", model=model)
            metrics = report["metrics"]["raw"]
            rows.append((seed, name, metrics["accuracy"], metrics["loss"], metrics["num_images"], report["seconds"]))
    print(f"{'seed':>4}  {'operators':<9}  accuracy    loss  images  seconds")
    for seed, name, accuracy, loss, num_images, seconds in rows:
        print(f"{seed:>4}  {name:<9}  {accuracy:>8.2%}  {loss:.4f}  {num_images:>6}  {seconds:>7.0f}")


if __name__ == "__main__":
    main()
