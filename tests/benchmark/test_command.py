# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import tyro
from picture_data import write_folder
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.benchmark import contestants, forms, machine, networks, runner
from svit_hf.benchmark.command import BenchmarkCommand
from svit_hf.benchmark.gate import GateError
from svit_hf.benchmark.machine import Peaks
from svit_hf.benchmark.results import FORMAT, Case, Row, read_results
from svit_hf.errors import SViTError


OFFICIAL = Path(__file__).with_name("official_stand_in.py")
PEAKS = Peaks(matrix_product={"fp32": 1e11, "bf16": 1e9}, convolution={"fp32": 1e11, "bf16": 1e9}, copy=1e10)


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Return a function that runs the command on a tiny model, on a machine whose peaks are known."""
    model = SViTForImageClassification(tiny_config())
    model.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(runner, "measure_peaks", lambda *args: PEAKS)
    # the process of the tests stays as it is
    monkeypatch.setattr(runner, "use_exact_float32", lambda: None)
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: "left alone")
    monkeypatch.setattr(runner, "LARGER_CELLS", ([8, 4, 2, 1],))
    monkeypatch.setattr(contestants, "measure_interleaved", short(contestants.measure_interleaved))
    tiny_peer = networks.Network("peer", lambda size: SViTForImageClassification(tiny_config()))
    monkeypatch.setitem(networks.PEERS, "peer", tiny_peer.build)
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit

    def run(*arguments):
        small = ["--model", tmp_path / "tiny", "--image-size", "64", "--batch-size", "2", "--repeats", "2", "--device"]
        given = [*small, "cpu", "--peers", *arguments]
        return tyro.cli(BenchmarkCommand, args=[str(argument) for argument in given]).run()

    yield run
    torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = limits


def short(measure):
    return lambda *args, **kwargs: measure(*args, **(kwargs | {"min_seconds": 1e-6}))


@pytest.mark.parametrize("task", ["inference", "training"])
def test_models_are_measured_beside_official_operators_and_peers(benchmark, tmp_path, task, capsys):
    output = [tmp_path / name for name in ("run.json", "run.md", "run.png")]
    assert benchmark("peer", "--baseline", OFFICIAL, "--task", task, "--output", *output) == 0
    content = json.loads(output[0].read_text())
    assert content["format"] == FORMAT
    (described,) = content["machines"]
    assert {"device_name", "threads", "versions", "commit", "memory_allocator", "peaks"} <= described.keys()
    assert [reason.partition(":")[0] for reason in described["left_out"]] == ["bf16"]
    (case,) = content["cases"]
    assert case.keys() == {field.name for field in fields(Case)}
    own = ["tiny official operators", "tiny eager"]
    own += ["tiny folded"] if task == "inference" else ["tiny selective checkpointing", "tiny full checkpointing"]
    assert [row["name"] for row in case["rows"]] == [*own, "peer eager"]
    for row in case["rows"]:
        assert row.keys() == {field.name for field in fields(Row)}
        assert len(row["seconds"]) == 2
        assert row["images_per_second"] == pytest.approx(2 / row["median_seconds"])
        assert row["error"] < 1e-3
        assert row["state_bytes"] > 0
    assert case["rows"][0]["ratio"] == 1
    assert read_results(output[:1]).cases[0].rows[0].seconds == case["rows"][0]["seconds"]
    shown = capsys.readouterr().out
    assert "peer eager" in shown
    assert "left out: bf16: emulated here" in shown
    assert "| tiny eager | fp32 |" in output[1].read_text()
    assert output[2].read_bytes().startswith(b"\x89PNG")


def test_training_state_has_weights_and_moments(benchmark, tmp_path):
    benchmark("--task", "training", "--output", tmp_path / "run.json")
    rows = read_results([tmp_path / "run.json"]).cases[0].rows
    parameters = sum(p.nbytes for p in SViTForImageClassification(tiny_config()).parameters())
    assert all(row.state_bytes > 3 * parameters for row in rows)


@pytest.mark.parametrize("task", ["inference", pytest.param("training", marks=pytest.mark.slow)])
def test_super_tokens_are_measured_alone(benchmark, tmp_path, task):
    benchmark("--part", "super-tokens", "--task", task, "--output", tmp_path / "run.json")
    cases = read_results([tmp_path / "run.json"]).cases
    assert [case.title.split("stage ")[1] for case in cases] == ["1: 2x8x16x16, cell 4x4", "2: 2x12x8x8, cell 2x2"]
    for case in cases:
        assert all(row.share_of_bound > 0 and row.images_per_second is None for row in case.rows)


@pytest.mark.parametrize("task", ["inference", pytest.param("training", marks=pytest.mark.slow)])
def test_operators_are_measured_in_several_ways(benchmark, tmp_path, task):
    benchmark("--part", "operators", "--task", task, "--output", tmp_path / "run.json")
    cases = read_results([tmp_path / "run.json"]).cases
    assert [len(case.rows) for case in cases] == [3, 2, 2, 3, 2]
    assert all(row.giga_macs > 0 and row.share_of_bound > 0 for case in cases for row in case.rows)


@pytest.mark.slow
def test_growth_keeps_the_number_of_pixels_and_is_shown_per_pixel(benchmark, tmp_path, capsys):
    benchmark("--part", "growth", "--image-size", "64", "128", "--batch-size", "4", "--output", tmp_path / "run.json")
    cases = read_results([tmp_path / "run.json"]).cases
    assert [(case.image_size, case.batch_size) for case in cases] == [(64, 4), (128, 1)]
    names = [row.name for row in cases[0].rows]
    assert names == ["tiny eager", "tiny folded", "tiny cells 8 4 2 1 folded"]
    assert "inference: ns per pixel by edge of the image" in capsys.readouterr().out


def test_loading_is_measured_beside_torchvision_with_the_same_augmentation(benchmark, tmp_path, capsys):
    write_folder(tmp_path / "images" / "train", range(9))
    images = ["--data", tmp_path / "images", "--num-images", "8"]
    output = [tmp_path / name for name in ("run.json", "run.md", "run.png")]
    benchmark("--part", "data", *images, "--num-workers", "0", "1", "--output", *output)
    cases = read_results(output[:1]).cases
    kinds = ["crop, flip, RandAugment, erasing", "crop and flip"]
    assert [case.title for case in cases] == [
        f"image of a worker, {kind}: num_workers {num_workers}, batch 2, 64 pixels"
        for num_workers in (0, 1)
        for kind in kinds
    ]
    for case in cases:
        assert [row.name for row in case.rows] == ["torchvision", "svit-hf", "decoding alone"]
        for row in case.rows:
            assert len(row.seconds) == 2
            assert row.images_per_second == pytest.approx(1 / row.median_seconds)
            assert row.quartile_ratios[0] <= row.ratio <= row.quartile_ratios[1]
        assert case.rows[0].ratio == 1
    assert "images/s" in capsys.readouterr().out


def test_what_needs_torchvision_is_left_out_where_it_is_missing(benchmark, tmp_path, monkeypatch):
    for module in ("svit_hf.benchmark.loading", "svit_hf.data.throughput"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    # of the photographs
    benchmark("--part", "data", "--num-images", "4", "--output", tmp_path / "run.json")
    results = read_results([tmp_path / "run.json"])
    (case,) = results.cases
    assert [row.name for row in case.rows] == ["svit-hf", "decoding alone"]
    assert "crop and flip" in case.title
    assert results.machines[0]["left_out"][-1].endswith("RandAugment, erasing: torchvision is not installed")


@pytest.mark.parametrize("task", ["inference", "training"])
def test_wrong_results_show_no_times(benchmark, tmp_path, monkeypatch, capsys, task):
    def prepare(model, situation):
        with torch.no_grad():
            model.svit.stages[0].layers[0].attention.self_attention.projection.bias += 1.0
        return model

    broken = replace(forms.SVIT_REFERENCE, name="broken", prepare=prepare)
    monkeypatch.setattr("svit_hf.benchmark.classifiers.SVIT_FORMS", (forms.SVIT_REFERENCE, broken))
    with pytest.raises(GateError, match=r"tiny broken: .* differ"):
        benchmark("--task", task, "--output", tmp_path / "run.json")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run.json").exists()


def test_peer_that_cannot_run_is_left_out_with_the_reason(benchmark, tmp_path, monkeypatch):
    def build(size):
        raise ValueError("images are too small")

    monkeypatch.setitem(networks.PEERS, "peer", build)
    benchmark("peer", "--output", tmp_path / "run.json")
    results = read_results([tmp_path / "run.json"])
    assert "peer, 64 pixels: ValueError: images are too small" in results.machines[0]["left_out"]
    assert [row.name for row in results.cases[0].rows] == ["tiny eager", "tiny folded"]


def test_rendering_puts_runs_together(benchmark, tmp_path, capsys):
    benchmark("--output", tmp_path / "a.json")
    content = (tmp_path / "a.json").read_text()
    (tmp_path / "b.json").write_text(content.replace("tiny and others", "another run"))
    capsys.readouterr()
    assert benchmark("--render", tmp_path / "a.json", tmp_path / "b.json") == 0
    shown = capsys.readouterr().out
    assert shown.index("inference, tiny and others") < shown.index("inference, another run: batch 2, 64 pixels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "`repeats` is 0; it has to be at least 1"),
        (["--image-size", "16"], r"`image_size` is \(16,\); it has to be at least 32"),
        (["--batch-size"], "`batch_size` is empty"),
        (["--dtype", "bf16"], "`dtype` is bf16, which this device only emulates"),
        (["--num-workers"], "`num_workers` is empty"),
        (["--num-workers", "-1"], r"`num_workers` is \(-1,\); it has to be at least 0"),
        (["--part", "data", "--num-images", "3"], "gives 3 images; two batches of 2 for each worker need 4"),
        (["--int8", "--task", "training"], "`task` is 'training'; `export` and `int8` are for inference"),
        (["--export", "pt2", "--part", "growth"], "`part` is 'growth', .* are for inference with whole models alone"),
        (["--device", "abacus"], "`device` is 'abacus', which cannot be used"),
        (["--output", "run.txt"], "'run.txt'; its suffix has to be one of .json, .md, .png"),
        (["--output", "nowhere/run.json"], "whose folder does not exist"),
        (["--baseline", "nowhere.py"], "`baseline` is 'nowhere.py', which is no Python file"),
        (["--render", "nowhere.json"], "`render` has 'nowhere.json', which cannot be read"),
    ],
)
def test_impossible_arguments_are_named(benchmark, arguments, message):
    with pytest.raises(SViTError, match=message):
        benchmark(*arguments)


def test_file_without_the_class_is_no_baseline(benchmark, tmp_path):
    (tmp_path / "other.py").write_text("class Other: pass\n")
    with pytest.raises(SViTError, match="has no class 'STViTAsReleased'"):
        benchmark("--baseline", tmp_path / "other.py")


def test_other_json_is_not_rendered(benchmark, tmp_path):
    (tmp_path / "other.json").write_text('{"format": "another"}')
    with pytest.raises(SViTError, match="is not in the format"):
        benchmark("--render", tmp_path / "other.json")


def test_8_bits_without_torchao_are_left_out_with_the_reason(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "missing_packages", lambda extra: ["torchao"])
    benchmark("--int8", "--output", tmp_path / "run.json")
    results = read_results([tmp_path / "run.json"])
    assert results.machines[0]["left_out"][0] == "int8 in PyTorch: torchao is not installed"
    assert [row.name for row in results.cases[0].rows] == ["tiny eager", "tiny folded"]


@pytest.mark.parametrize("arguments", [["--int8"], ["--export", "pt2"]], ids=lambda words: words[0])
def test_programs_run_on_cpus_alone(benchmark, monkeypatch, arguments):
    monkeypatch.setattr(runner, "_find_device", lambda name: torch.device("cuda", 0))
    with pytest.raises(SViTError, match="`device` is 'cuda:0'; with `export` and `int8` it has to be cpu"):
        benchmark(*arguments)


@pytest.mark.slow
def test_compiled_forms_are_measured_too(benchmark, tmp_path):
    benchmark("--compile", "--part", "super-tokens", "--output", tmp_path / "run.json")
    cases = read_results([tmp_path / "run.json"]).cases
    assert [row.name for row in cases[0].rows] == ["eager", "compiled"]
