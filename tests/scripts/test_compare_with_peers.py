# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from picture_data import write_parquet
from scripts import compare_with_peers


@pytest.fixture
def words(tmp_path):
    (tmp_path / "numbers").mkdir()
    write_parquet(tmp_path / "numbers" / "train.parquet", range(40))
    write_parquet(tmp_path / "numbers" / "test.parquet", range(40, 47))
    return f"--output-dir {tmp_path / 'runs'} --data {tmp_path / 'numbers'} --epochs 3".split()


@pytest.mark.slow
def test_each_network_learns_at_its_best_rate_and_once(words, tmp_path, capsys):
    words += ["--networks", "Swin", "SViT", "--learning-rates", "1e-3", "4e-3", "--seeds", "2"]
    searched, table = (
        [line.split() for line in part.splitlines()] for part in compare_with_peers.main(words).split("\n\n")
    )
    assert "SViT, learning rate" in capsys.readouterr().out
    assert [line[1] for line in searched] == ["network", "Swin", "SViT"]
    folder = tmp_path / "runs" / "numbers"
    scores = {}
    for line, name in zip(table[1:], ("Swin", "SViT"), strict=True):
        tried = {}
        for rate in ("0.001", "0.004"):
            report = json.loads((folder / name / f"rate-{rate}" / "report.json").read_text())
            # a fifth of the training images
            assert report["data"]["num_eval"] == 8
            tried[rate] = (report["metrics"]["raw"]["accuracy"], -report["metrics"]["raw"]["loss"])
        best = max(tried, key=tried.get)
        reports = [json.loads((folder / name / f"rate-{best}-seed-{seed}/report.json").read_text()) for seed in (0, 1)]
        assert [report["data"]["num_eval"] for report in reports] == [7, 7]
        assert len({report["recipe"]["run"]["seed"] for report in reports}) == 2
        scores[name] = [100 * report["metrics"]["raw"]["accuracy"] for report in reports]
        assert line[:3] == ["numbers", name, f"{reports[0]['num_parameters']:,}"]
        assert line[5] == best
        assert list(map(float, line[6:8])) == pytest.approx(scores[name], abs=0.05)
        leads = [one - other for one, other in zip(scores["Swin"], scores[name], strict=True)]
        assert float(line[10]) == pytest.approx(sum(leads) / 2, abs=0.05)
    compare_with_peers.main(words)
    assert "learning rate" not in capsys.readouterr().out


def test_networks_are_of_one_size():
    recipe = compare_with_peers.recipe_for("", 1, 1e-3, 0, 0.0)
    networks = [make(recipe, ["one", "other"]).eval() for make in compare_with_peers.NETWORKS.values()]
    sizes = [sum(map(torch.numel, network.parameters())) for network in networks]
    assert max(sizes) < 1.05 * min(sizes)
    pixels = torch.randn(1, 3, compare_with_peers.IMAGE_SIZE, compare_with_peers.IMAGE_SIZE)
    assert {network(pixel_values=pixels).logits.shape for network in networks} == {(1, 2)}
