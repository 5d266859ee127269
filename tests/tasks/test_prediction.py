# SPDX-License-Identifier: Apache-2.0
"""Predicted masks and boxes, in memory and in files, are what the task says of each picture."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from svit_hf import cli
from svit_hf.tasks.coco import decode_segmentation, read_coco
from svit_hf.tasks.pictures import Origin
from svit_hf.tasks.prediction import predict_objects
from svit_hf.tasks.saved_models import open_task_model


TASKS = ["semantic_segmentation", "instance_segmentation", "detection"]


@pytest.fixture
def pictures(squares, tmp_path):
    """Copy the pictures, one of them cut off."""
    folder = shutil.copytree(squares / "test" / "images", tmp_path / "pictures")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    return folder


def predict(model, sources, output, *options, status=0):
    common = ["--output", output, "--min-score", 0, "--part-size", 2, "--batch-size", 2, "--data.num-workers", 0]
    assert cli.main([*map(str, ["predict", model, sources, *common, *options])]) == status
    return [row for file in sorted(output.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


def mask_of(entry, row):
    code = {"size": [row["height"], row["width"]], "counts": entry["segmentation"]}
    return decode_segmentation(code, (70, 90), Origin("a file", 0))


@pytest.mark.parametrize("task", TASKS)
def test_files_hold_what_the_task_says(task, saved, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    rows = predict(saved(task), pictures, out, "--overlays")
    assert "5 images, 1 of them broken, in 3 files" in capsys.readouterr().out
    assert [row["sample_id"] for row in rows] == list(range(5))
    assert [row["error"] is None for row in rows] == [True, True, False, True, True]
    opened = open_task_model(saved(task))
    whole = [row for row in rows if row["error"] is None]
    for row in whole:
        with Image.open(row["source"]) as image:
            picture = image.convert("RGB")
        said = opened.task.predict(opened.model, [picture])[0]
        name = f"{row['sample_id']:06d}-{row['sample_id']}.png"
        entries = row["objects"]
        assert entries
        if task == "semantic_segmentation":
            # batches of other sizes round otherwise
            assert (np.asarray(Image.open(out / "masks" / name)) == said).mean() > 0.999
            covered = sum(mask_of(entry, row).astype(int) for entry in entries)
            assert (covered == 1).all()
            assert {entry["label_id"] for entry in entries} == set(np.unique(said))
        else:
            scores = np.sort(said.scores)[::-1][:100]
            np.testing.assert_allclose([entry["score"] for entry in entries], scores, atol=1e-4)
            best = said.boxes[np.argmax(said.scores)]
            x, y, width, height = entries[0]["bbox"]
            np.testing.assert_allclose([x, y, x + width, y + height], best, atol=0.1)
        assert {entry["label"] for entry in entries} <= {"background", "square"}
        with Image.open(out / "overlays" / name) as overlay:
            assert overlay.size == (90, 70)
    assert len(list((out / "overlays").iterdir())) == 4
    assert (out / "masks").exists() == (task != "detection")

    content = json.loads((out / "coco.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1, 3, 4]
    assert len(content["annotations"]) == sum(len(row["objects"]) for row in whole)
    # it is a data set again
    if task == "detection":
        again = read_coco(out / "coco.json", tmp_path)
        assert again.labels == ["background", "square"]
        fields = again.load(0)["objects"]
        assert fields["bbox"] == [entry["bbox"] for entry in whole[0]["objects"]]


def test_masks_of_instances_number_the_objects_of_the_file(saved, pictures, tmp_path):
    out = tmp_path / "out"
    row = predict(saved("instance_segmentation"), pictures / "0.png", out)[0]
    numbers = np.asarray(Image.open(out / "masks" / "000000-0.png"))
    masks = [mask_of(entry, row) for entry in row["objects"]]
    assert numbers.max() <= len(masks)
    np.testing.assert_array_equal(numbers > 0, np.any(masks, axis=0))
    # the best one is on top
    assert (numbers[masks[0]] == 1).all()


def test_an_interrupted_prediction_goes_on(saved, pictures, tmp_path, capsys):
    expected = predict(saved("detection"), pictures, tmp_path / "whole")
    out = tmp_path / "out"
    predict(saved("detection"), pictures, out)
    (out / "part-00001.parquet").unlink()
    (out / "coco.json").unlink()
    assert predict(saved("detection"), pictures, out) == expected
    assert (out / "coco.json").read_bytes() == (tmp_path / "whole" / "coco.json").read_bytes()
    assert predict(saved("detection"), pictures, out, "--min-score", 0.2, status=2) == expected
    assert "begun with other min_score" in capsys.readouterr().err


def test_scores_below_the_least_are_left_out(saved, pictures):
    opened = open_task_model(saved("detection"))
    scores = [entry["score"] for row in predict_objects(opened, str(pictures), min_score=0).rows()
              for entry in row["objects"] or ()]  # fmt: skip
    middle = float(np.median(scores))
    kept = predict_objects(opened, str(pictures), min_score=middle)
    assert min(entry["score"] for row in kept.rows() for entry in row["objects"] or ()) >= middle
    assert sum(len(row["objects"] or ()) for row in kept.rows()) == sum(score >= middle for score in scores)
    assert kept.table().splitlines()[2].endswith("broken: " + list(kept.rows())[2]["error"])


def test_few_pictures_are_shown(saved, pictures, capsys):
    assert cli.main(["predict", saved("semantic_segmentation"), str(pictures / "0.png"), str(pictures / "1.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("%" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "3"], "`top_k` is '3'; it is for classifiers"),
        (["--embeddings"], "`embeddings` is 'True'; it is for classifiers"),
        (["--min-score", "2"], "`min_score` is 2.0; it has to be from 0 to 1"),
        (["--overlays"], "`overlays` is True, and `output` names no folder"),
        (["--task", "instance_segmentation"], "`task` is 'instance_segmentation'; allowed is 'detection'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_options_are_refused(options, message, saved, pictures, capsys):
    assert cli.main(["predict", saved("detection"), str(pictures / "0.png"), *options]) == 2
    assert message in capsys.readouterr().err


def test_options_of_dense_models_are_refused_for_classifiers(checkpoint, pictures, capsys):
    assert cli.main(["predict", str(checkpoint), str(pictures / "0.png"), "--overlays"]) == 2
    assert "`overlays` is 'True'; it is for models for segmentation or detection" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_no_prediction(saved, pictures):
    opened = open_task_model(saved("detection"))
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            # classes alone: the boxes stay finite
            if "decoder.class_embed" in name:
                parameter.fill_(float("nan"))
    rows = list(predict_objects(opened, str(pictures / "0.png"), min_score=0).rows())
    assert rows[0]["error"] == "the output of the model is not finite"
