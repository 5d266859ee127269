# SPDX-License-Identifier: Apache-2.0
"""The quickstart as a user runs it. One short run serves most tests; the full one is a campaign."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import logging

from svit_hf import SViTForImageClassification, cli
from svit_hf.data.augmentation import TrainingTransform
from svit_hf.data.sharding import SampleKey
from svit_hf.errors import SViTError
from svit_hf.hub.remote_code import code_files
from svit_hf.quickstart import digits
from svit_hf.quickstart.digits import load_digit_images, run_quickstart
from svit_hf.quickstart.report import QuickstartReport


FILES = {
    "model/README.md",
    "model/config.json",
    "model/model.safetensors",
    "model/preprocessor_config.json",
    "model/probe.safetensors",
    *(f"model/{path.name}" for path in code_files()),
    "predictions.png",
    "quickstart.json",
    *(f"images/{digit}.png" for digit in range(10)),
}

# what the quickstart tells its user to type
THREE_LINES = """
import svit_hf
from transformers import pipeline
print(pipeline("image-classification", model="{folder}/model")("{folder}/images/7.png")[0]["label"])
"""


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def talkativeness():
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Return a folder, what came out of two epochs in it, and what was shown meanwhile."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    before = talkativeness()
    with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(shown):
        report = run_quickstart(folder, epochs=2, seed=1)
    assert talkativeness() == before
    return folder, report, shown.getvalue()


def test_writes_what_it_promises_and_nothing_else(short_run):
    folder, _, _ = short_run
    assert files_in(folder) == FILES
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    for digit in range(10):
        with Image.open(folder / f"images/{digit}.png") as image:
            assert image.size == (8, 8)


def test_shows_the_training_and_nothing_else(short_run):
    lines = short_run[2].splitlines()
    assert lines[0] == "training"
    rows = [line for line in lines if not line.startswith((" ", "epoch "))]
    assert rows[1:-1] == ["done"], lines
    assert re.fullmatch(r"loading the saved model in a fresh process, .*", rows[-1])
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1.00", "2.00", "2"]


def test_digits_are_seen_whole_and_unmirrored(tmp_path):
    digit = load_digit_images()["test"]["image"][0]
    recipe = digits.recipe_for_digits(tmp_path, 1, 0)
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    pixels = TrainingTransform((32, 32), mean, std, recipe.augmentation)(digit.convert("RGB"), SampleKey(0, 0, 5, 0))
    enlarged = np.asarray(digit.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = torch.from_numpy(enlarged).float().expand(3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    torch.testing.assert_close(pixels * std + mean, expected, atol=0.01, rtol=0)


def test_model_learns_and_the_report_is_consistent(short_run):
    _, report, _ = short_run
    # ten classes: chance is 0.1
    assert 0.5 < report.accuracy <= report.top5_accuracy <= 1
    assert report.num_images == 360
    assert 0 < report.training_seconds < report.seconds
    # the published small model, shrunk
    assert math.isclose(report.num_parameters, 0.35e6, rel_tol=0.05)


def test_reloading_changes_no_number(short_run):
    folder, report, _ = short_run
    # the two image backends may round otherwise
    assert abs(report.num_wrong_reloaded - report.num_wrong) <= 2
    assert load_file(folder / "model/model.safetensors")["classifier.weight"].shape == (10, 256)


def test_report_file_holds_the_report(short_run):
    folder, report, _ = short_run
    stored = json.loads((folder / "quickstart.json").read_text())
    assert stored["made_by"] == "svit-hf quickstart"
    assert stored["accuracy"] == report.accuracy


def test_model_card_matches_the_run(short_run):
    folder, report, _ = short_run
    card = ModelCard.load(folder / "model/README.md")
    numbers = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert numbers["accuracy"] == report.accuracy
    assert numbers["top-5 accuracy"] == report.top5_accuracy
    assert "svit-hf quickstart --epochs 2 --seed 1" in card.text
    assert f"{report.num_parameters:,} parameters and 10 classes" in card.text
    assert "1437 of the 1797 digits" in card.text


def test_config_names_the_digits(short_run):
    config = SViTForImageClassification.from_pretrained(short_run[0] / "model").config
    assert config.id2label == {digit: str(digit) for digit in range(10)}
    assert config.label2id == {str(digit): digit for digit in range(10)}


def test_text_says_where_everything_is(short_run):
    folder, report, _ = short_run
    text = report.text()
    for name in ("model", "model/README.md", "predictions.png", "images/7.png"):
        assert str(folder / name) in text
    assert f"of 360 held-out digits, {report.num_wrong} wrong" in text


def report_with(**values):
    usual = {"accuracy": 0.99, "top5_accuracy": 1.0, "num_images": 360, "num_wrong_reloaded": 4}
    rest = {"output_dir": Path("out"), "num_parameters": 1, "training_seconds": 1.0, "seconds": 2.0}
    return QuickstartReport(**(usual | rest | values))


@pytest.mark.parametrize(
    ("values", "problem"),
    [({}, None), ({"accuracy": 0.969}, "at least 97%"), ({"num_wrong_reloaded": 20}, "as good after saving")],
    ids=["good", "inaccurate", "other-answers"],
)
def test_status_and_text_tell_bad_from_good(values, problem, monkeypatch, capsys):
    monkeypatch.setattr("svit_hf.quickstart.digits.run_quickstart", lambda *args, **kwargs: report_with(**values))
    assert cli.main(["quickstart"]) == (1 if problem else 0)
    printed = capsys.readouterr().out
    assert ("Not good enough" in printed) == bool(problem)
    assert not problem or problem in printed


def test_foreign_folder_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert cli.main(["quickstart", "--output-dir", str(tmp_path)]) == 2
    assert "which is in use" in capsys.readouterr().err
    assert files_in(tmp_path) == {"thesis.tex"}


def test_no_epoch_is_refused(tmp_path):
    with pytest.raises(SViTError, match="`epochs` is 0"):
        run_quickstart(tmp_path, epochs=0)


def test_failing_fresh_process_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(digits.sys, "executable", "false")
    with pytest.raises(SViTError, match="could not be used in a fresh process"):
        digits._classify_in_fresh_process(tmp_path, None)


@pytest.mark.campaign
def test_full_run_is_accurate_and_quiet(tmp_path, fresh_python):
    folder = tmp_path / "runs" / "quickstart"
    printed = fresh_python("-W", "error", "-m", "svit_hf", "quickstart")
    assert re.match(r"\naccuracy +(99|100)\.\d\d% of 360 held-out digits", printed)
    assert files_in(folder) == FILES
    report = json.loads((folder / "quickstart.json").read_text())
    assert report["accuracy"] >= 0.99
    assert report["num_wrong_reloaded"] <= 4
    weights = load_file(folder / "model/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert fresh_python("-W", "error", "-c", THREE_LINES.format(folder=folder)).strip() == "7"
