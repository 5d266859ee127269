# SPDX-License-Identifier: Apache-2.0
"""Ablations as a program, on images that a tiny model learns in a second."""

import io
import json
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image
from recipe_changes import changed
from square_pictures import write_squares

from svit_hf.ablation.running import run_variants, train_in_processes
from svit_hf.cli import main
from svit_hf.errors import SViTError
from svit_hf.progress import Progress
from svit_hf.recipes import RECIPES, smoke


LAYOUT = {
    "hidden-sizes": "[8,12]",
    "depths": "[1,1]",
    "num-attention-heads": "[1,2]",
    "num-sampling-iterations": "[1,1]",
    "use-layer-scale": "[false,false]",
    "super-token-sizes": "[2,1]",
    "projection-dim": "16",
}
# what heads for segmentation want
FOUR_STAGES = {
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "super_token_sizes": [2, 2, 1, 1],
}


@pytest.fixture
def pictures(tmp_path):
    """Write pictures whose brightness is their label."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for split, number in (("train", 24), ("test", 12)):
        rows = []
        for index in range(number):
            file = io.BytesIO()
            Image.fromarray(np.full((20, 20, 3), index % 2 * 200, dtype=np.uint8)).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": index % 2})
        labels = datasets.ClassLabel(names=["dark", "light"])
        data = datasets.Dataset.from_list(rows, datasets.Features({"image": datasets.Image(), "label": labels}))
        data.to_parquet(str(folder / f"{split}.parquet"))
    return folder


def ablate(pictures, *more):
    options = ["--recipe", "smoke", "--output-dir", pictures.parent / "runs", "--data.path", pictures]
    options += ["--data.num-workers", "0", "--optimization.epochs", "1", "--optimization.warmup-epochs", "0"]
    options += ["--optimization.batch-size", "8", "--optimization.device-batch-size", "8", "--model.image-size", "32"]
    options += [part for field, value in LAYOUT.items() for part in (f"--model.config.{field}", value)]
    return main(["ablate", *map(str, options), *more])


@pytest.mark.slow
# the process has no accelerator
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_runs_are_compared_and_not_repeated(pictures, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["svit-hf", "ablate", "s3://key:secret@bucket/cats"])
    over = ["--over", "depths=[1,1],[1,2]", "--seeds"]
    assert ablate(pictures, *over, "1") == 0
    printed = capsys.readouterr()
    names = [line.split()[0] for line in printed.out.splitlines()[:3]]
    assert names == ["variant", "depths=[1,1]", "depths=[1,2]"]
    assert printed.out.splitlines()[-1].endswith("the same command with --seeds 4 adds runs.")
    report = json.loads((pictures.parent / "runs/depths=1,1/seed-0/report.json").read_text())
    assert report["command"] == "svit-hf ablate s3://***@bucket/cats"
    assert re.search(r"^1/2 runs, .* left$", printed.err, re.MULTILINE)
    runs = pictures.parent / "runs"
    result = json.loads((runs / "ablation.json").read_text())
    assert result["metric"] == "accuracy"
    for outcome, depths in zip(result["outcomes"], ("1,1", "1,2"), strict=True):
        report = json.loads((runs / f"depths={depths}/seed-0/report.json").read_text())
        assert outcome["scores"] == [report["metrics"][report["chosen"]]["accuracy"]]
        assert outcome["num_parameters"] == report["num_parameters"]
    # the second has a layer more
    assert len({outcome["multiply_adds"] for outcome in result["outcomes"]}) == 2

    # a seed more, when one run is lost: what is there is not touched, and the lost one comes out the same
    kept, lost = (runs / f"depths={depths}/seed-0/report.json" for depths in ("1,1", "1,2"))
    lost.unlink()
    # raw weights and their average are equally good here
    report = json.loads(kept.read_text())
    report["metrics"] = {"raw": {"accuracy": 0.1}, "ema": {"accuracy": 0.1}, report["chosen"]: {"accuracy": 0.9}}
    kept.write_text(json.dumps(report))
    assert ablate(pictures, *over, "2") == 0
    assert json.loads(kept.read_text()) == report
    assert lost.is_file()
    again = json.loads((runs / "ablation.json").read_text())
    assert [outcome["scores"][0] for outcome in again["outcomes"]] == [0.9, result["outcomes"][1]["scores"][0]]
    assert [len(outcome["scores"]) for outcome in again["outcomes"]] == [2, 2]


@pytest.mark.campaign
def test_runs_beside_each_other_give_the_same(pictures, capsys):
    over = ["--over", "qkv_bias=true,false", "--seeds", "1"]
    assert ablate(pictures, *over, "--jobs", "2") == 0
    runs = pictures.parent / "runs"
    together = json.loads((runs / "ablation.json").read_text())["outcomes"]
    assert (runs / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "report.json" in (runs / "qkv_bias=true/seed-0.txt").read_text()
    (runs / "qkv_bias=true/seed-0/report.json").unlink()
    assert ablate(pictures, *over) == 0
    alone = json.loads((runs / "ablation.json").read_text())["outcomes"]
    assert [outcome["scores"] for outcome in alone] == [outcome["scores"] for outcome in together]


@pytest.mark.slow
def test_heads_of_dense_models_have_their_cost(tmp_path):
    recipe = changed(
        RECIPES["segment_semantic"](),
        **{"data__path": str(write_squares(tmp_path / "squares", {"train": 4, "test": 2})), "data__num_workers": 0},
        **{"task__labels": ["nothing", "large", "small"], "task__crop_size": 0, "model__image_size": 64},
        **{"model__config": FOUR_STAGES, "task__head_options": {"pool_scales": [1, 2]}},
        **{"optimization__epochs": 1, "optimization__warmup_epochs": 0, "optimization__batch_size": 4},
    )
    # the same backbone
    outcomes, metric = run_variants(recipe, [{"task.width": 32}, {"task.width": 64}], 1, tmp_path / "runs")
    assert metric == "mean_iou"
    assert outcomes[0].multiply_adds < outcomes[1].multiply_adds
    impossible = changed(recipe, task__head="d_fine")
    with pytest.raises(SViTError, match="`head` is 'd_fine'"):
        run_variants(impossible, [{}], 1, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_process_that_fails_is_named(pictures, tmp_path):
    recipe = replace(smoke(), data=replace(smoke().data, path=str(tmp_path / "nothing")))
    with pytest.raises(SViTError, match=r"ended with status 2; see '.*seed-0.txt'"):
        train_in_processes([(tmp_path / "seed-0", recipe)], 2, Progress(1, "runs"))
    assert "nothing" in (tmp_path / "seed-0.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "`seeds` is 0"),
        (["--jobs", "0"], "`jobs` is 0"),
        (["--over", "super_token_sampler=softer"], "`model.config` does not describe a model"),
        (["--over", "qkv_bias=true,true"], "`over` names a value twice"),
        (["--over", "run.seed=1,2"], "say how many with `seeds`"),
        (["--data.path", "s3://key:secret@bucket/cats", "--jobs", "2"], "`jobs` is 2, but the recipe has a password"),
        (["--run.evaluate-every-epochs", "0"], "`run.evaluate_every_epochs` is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_refused_before_the_first_run(pictures, options, message, capsys):
    assert ablate(pictures, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(pictures.parent.glob("runs/*"))
