# SPDX-License-Identifier: Apache-2.0
"""`svit-hf ablate`: a recipe with some fields changed, over several seeds."""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated

import torch
import tyro

from svit_hf.ablation.variants import find_variants
from svit_hf.errors import SViTError
from svit_hf.extras import require_extra
from svit_hf.files import whole_file, write_text
from svit_hf.provenance import provenance
from svit_hf.recipes.command import TrainCommand
from svit_hf.urls import without_credentials


@dataclass(frozen=True)
class AblateCommand(TrainCommand):
    """Train a recipe with every combination of some values, or with one at a time, with the same seeds, and compare.

    The same command goes on after a stop: runs that are over are not repeated, others continue where they were. The
    table has the best evaluation of each run, its mean, its standard deviation over seeds, and the difference to the
    first combination, seed by seed, with its standard error. ablation.json has the values of every run, ablation.png
    is a picture of them, where matplotlib is installed.

    Samplers, what happens among super tokens, kinds of attention, cells and rounds of sampling are always compared
    with two controls: a random association, and nothing among super tokens.

    Args:
        over: A field and its values, FIELD=VALUE,VALUE,...; may be given several times. A field without a dot is one
            of the model's config, any other one of the options below. The first values are what others are compared
            with.
        one_by_one: Compare the recipe as it is with each value alone, instead of all combinations.
        seeds: Runs of each combination; seeds count from `run.seed`.
        jobs: Runs at the same time, which share the cores, or one accelerator. With more than one, what a run says
            goes to a file beside its folder.
    """

    over: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE,...")] = ()
    one_by_one: bool = False
    seeds: int = 3
    jobs: int = 1

    def run(self) -> int:
        """Train, print the table, write ablation.json, and return the exit status.

        Raises:
            SViTError: If something does not go together; see `svit_hf.training.train.train`.
        """
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise SViTError(f"`{name}` is {getattr(self, name)}; it has to be at least 1.")
        variants = find_variants(self.over, self.one_by_one)
        require_extra("train", "ablate")
        # seconds pass while these are imported
        from svit_hf.ablation.running import run_variants
        from svit_hf.ablation.table import draw_outcomes, table_of
        from svit_hf.benchmark.report import align

        outcomes, metric = run_variants(
            self.options,
            variants,
            self.seeds,
            self.output_dir,
            self.jobs,
            resume=self.resume,
            resume_changed=self.resume_changed,
            command=without_credentials(shlex.join(["svit-hf", *sys.argv[1:]])),
        )
        print(align(table_of(outcomes, metric)))  # noqa: T201 - a program's result
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        content = provenance(device) | {"metric": metric, "outcomes": [asdict(outcome) for outcome in outcomes]}
        write_text(self.output_dir / "ablation.json", json.dumps(content, indent=1) + "\n")
        if find_spec("matplotlib") is not None:
            with whole_file(self.output_dir / "ablation.png") as path:
                draw_outcomes(outcomes, metric).savefig(path, dpi=120, format="png")
        print(  # noqa: T201 - a program's result
            f"\n{self.output_dir}/ablation.json has the values of every run. What differs by less than its standard "
            f"error does not differ; the same command with --seeds {self.seeds + 3} adds runs."
        )
        return 0
