# SPDX-License-Identifier: Apache-2.0
"""Saved models are evaluated exactly: each picture once, the same numbers over any number of processes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from svit_hf import cli
from svit_hf.data.options import DataOptions
from svit_hf.errors import EvaluationError
from svit_hf.evaluation import model_evaluation
from svit_hf.tasks.coco import encode_run_lengths
from svit_hf.tasks.evaluation import DenseReport, evaluate_task_model
from svit_hf.tasks.opening import find_split
from svit_hf.tasks.pictures import decode_mask
from svit_hf.tasks.saved_models import open_task_model
from svit_hf.tasks.semantic_segmentation import SemanticSegmentation


TASKS = ["semantic_segmentation", "instance_segmentation", "detection"]


@pytest.fixture
def data(squares, tmp_path):
    """Return a folder whose pictures have masks and, in COCO's JSON, objects; number 2 can be cut off."""
    folder = shutil.copytree(squares, tmp_path / "data")
    images, annotations = [], []
    for number in range(5):
        mask = decode_mask(folder / "test" / "masks" / f"{number}.png", None) > 0
        with Image.open(folder / "test" / "images" / f"{number}.png") as image:
            image.save(folder / "test" / f"{number}.png")
        left, top, right, bottom = Image.fromarray(mask).getbbox()
        images.append({"id": number, "file_name": f"{number}.png", "height": 70, "width": 90})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 7,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": encode_run_lengths(mask),
            }
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    (folder / "test" / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def evaluate(model, data, *options, status=0):
    output = data.parent / "result.json"
    arguments = ["evaluate", model, "--data.path", data, "--output", output, "--data.num-workers", 0, *options]
    assert cli.main([*map(str, arguments)]) == status
    return json.loads(output.read_text())


@pytest.mark.parametrize("task", TASKS)
def test_numbers_are_those_of_the_metric(task, saved, data, capsys):
    opened = open_task_model(saved(task))
    sheet = data.parent / "sheets" / "sheet.png"
    content = evaluate(saved(task), data, "--batch-size", 2, "--sheet", sheet)
    printed = capsys.readouterr().out
    result = content["results"]["model"]
    rows, metric = opened.task.find_rows(data, "test"), opened.task.metric()
    for start in range(0, len(rows), 2):
        samples = [opened.task.read(*rows[index]) for index in range(start, min(start + 2, len(rows)))]
        said = opened.task.predict(opened.model, [sample.picture for sample in samples])
        for place, (prediction, sample) in enumerate(zip(said, samples, strict=True)):
            metric.update(start + place, prediction, sample)
    expected = metric.compute()
    flat = {name: value for name, value in result.items() if name in expected}
    for entry in result["classes"]:
        flat |= {f"{kind}_{entry['name']}": value for kind, value in entry.items() if kind != "name"}
    assert flat == {name: None if value != value else value for name, value in expected.items()}
    assert (result["num_images"], result["num_broken"]) == (5, 0)
    assert (content["task"], content["split"]) == (task, "test")
    assert opened.task.best_metric.replace("_", " ") in printed
    assert "square" in printed.rpartition("by class")[2]
    with Image.open(sheet) as drawn:
        assert drawn.size == (4 * 256, 2 * 256)
        # the second picture, since the first has no object
        sample = opened.task.read(*rows[1])
        said = opened.task.predict(opened.model, [opened.task.read(*rows[index]).picture for index in range(4)])[1]
        for place, answer in enumerate((sample.target, said)):
            tile = opened.task.draw(sample.picture, answer).resize((256, 256))
            assert drawn.crop((256, 256 * place, 512, 256 * place + 256)).tobytes() == tile.tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_processes_count_as_one_does(task, saved, data, monkeypatch):
    opened = open_task_model(saved(task))
    alone = evaluate_task_model(opened, data, batch_size=2).report
    shares = []

    class Apart(Exception):  # noqa: N818 - no error
        pass

    def send(share):
        shares.extend(share)
        raise Apart

    for rank in range(3):
        monkeypatch.setattr(
            model_evaluation,
            "processes",
            lambda rank=rank: SimpleNamespace(
                process_index=rank,
                num_processes=3,
                is_main_process=False,
                device=torch.device("cpu"),
            ),
        )
        monkeypatch.setattr(model_evaluation, "gather_object", send)
        with pytest.raises(Apart):
            evaluate_task_model(opened, data, batch_size=2)
    assert [len(share[1]) for share in shares] == [2, 2, 1]
    for order in (shares, shares[::-1]):
        monkeypatch.setattr(model_evaluation, "gather_object", lambda share, order=order: order)
        assert evaluate_task_model(opened, data, batch_size=2).report.metrics == pytest.approx(
            alone.metrics, rel=0, abs=0, nan_ok=True
        )
    monkeypatch.setattr(model_evaluation, "gather_object", lambda share: [*shares, shares[0]])
    with pytest.raises(EvaluationError, match="counted twice"):
        evaluate_task_model(opened, data, batch_size=2)


def test_broken_pictures_are_named_and_not_counted(saved, data, capsys):
    picture = data / "test" / "images" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    result = evaluate(saved("semantic_segmentation"), data)["results"]["model"]
    assert (result["num_images"], result["num_broken"]) == (4, 1)
    assert "broken: 2.png" in capsys.readouterr().err
    for file in picture.parent.iterdir():
        file.write_bytes(b"nothing")
    arguments = ["evaluate", saved("semantic_segmentation"), "--data.path", str(data)]
    assert cli.main(arguments) == 3
    assert "none of the 5 images could be read" in capsys.readouterr().err


def test_annotations_are_read_as_told(saved, data):
    model = saved("semantic_segmentation")
    expected = evaluate(model, data)["results"]["model"]["classes"]
    for file in (data / "test" / "masks").iterdir():
        Image.open(file).point(lambda value: 255 * value).save(file)
    assert evaluate(model, data, "--annotations.is-binary")["results"]["model"]["classes"] == expected


def test_wrong_annotations_end_the_evaluation(saved, data, capsys):
    Image.new("L", (90, 70), 9).save(data / "test" / "masks" / "3.png")
    assert cli.main(["evaluate", saved("semantic_segmentation"), "--data.path", str(data)]) == 3
    assert "3.png, the whole mask: the mask has the values [9]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--flip"], 2, "`flip` is 'True'; it is for classifiers"),
        (["--data.streaming", "True"], 2, "`streaming` is True, but"),
        (["--split", "train"], 3, "has no split 'train'"),
        (["--annotations.box-format", "xyxy"], 2, "the task 'semantic_segmentation' does not know it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_options_are_refused(options, status, message, saved, data, capsys):
    arguments = ["evaluate", saved("semantic_segmentation"), "--data.path", str(data), *options]
    assert cli.main(arguments) == status
    assert message in capsys.readouterr().err


def test_the_first_split_to_evaluate_on_is_found(data):
    options = DataOptions(str(data))
    assert find_split(SemanticSegmentation, options, "eval").name == "test"
    (data / "test").rename(data / "val")
    assert find_split(SemanticSegmentation, options, "eval").name == "validation"


def test_classes_may_be_called_as_numbers_are():
    metrics = {"map": 0.5, "map_small": 0.25, "map_class_small": 0.75, "map_cell": 0.125}
    report = DenseReport(metrics, ["small", "cell"], ("map", "num_images"), 10, 0, 1.0)
    assert report.overall == {"map": 0.5, "map_small": 0.25}
    assert report.by_class == {"small": {"map": 0.75}, "cell": {"map": 0.125}}
