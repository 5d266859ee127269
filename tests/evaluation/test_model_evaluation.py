# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import torch
from evaluation_data import NAMES, NUM_IMAGES, labels, logits_of, make_classifier, picture, write_parquet
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from svit_hf import SViTImageProcessorPil, cli
from svit_hf.data.options import DataOptions
from svit_hf.errors import SViTError
from svit_hf.evaluation import evaluate_model, model_evaluation


TOLERANCE = 1e-5


@pytest.fixture
def data(tmp_path):
    write_parquet(tmp_path / "data" / "test.parquet")
    return tmp_path / "data"


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Return a function that runs the command, and gives the content of its file and what it printed."""

    def run(*arguments, status=0):
        output = tmp_path / "out" / "result.json"
        command = ["evaluate", *map(str, arguments), "--output", str(output), "--data.num-workers", "0"]
        assert cli.main(command) == status
        printed = capsys.readouterr()
        return json.loads(output.read_text()) if output.exists() else None, printed

    return run


def accuracy(logits):
    return (logits.argmax(dim=1) == torch.tensor(labels())).double().mean().item()


def test_run_is_evaluated_with_both_weights(tmp_path, data, evaluate):
    models = {
        name: make_classifier(tmp_path / "run/best" / name, seed=seed) for name, seed in (("raw", 0), ("ema", 1))
    }
    content, printed = evaluate(tmp_path / "run", "--data.path", data)

    assert list(content["results"]) == ["raw", "ema"]
    for name, model in models.items():
        logits, result = logits_of(model), content["results"][name]
        assert len(set(logits.argmax(dim=1).tolist())) > 1
        assert result["num_images"] == NUM_IMAGES
        assert result["accuracy"] == pytest.approx(accuracy(logits))
        assert result["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor(labels())).item(), rel=TOLERANCE)
        assert result["location"] == str(tmp_path / "run/best" / name)
        assert [counts["name"] for counts in result["classes"]] == NAMES
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines[-1][:3] == ["svit-hf", "predict", str(tmp_path / "run")]
    assert ["raw", "ema"] in lines
    assert ["images", "101", "101"] in lines
    assert ["accuracy", *(f"{content['results'][name]['accuracy']:.2%}" for name in ("raw", "ema"))] in lines
    assert content["versions"]["torch"] == torch.__version__
    assert content["num_processes"] == 1
    assert "\r" not in printed.err

    content, _ = evaluate(tmp_path / "run", "--data.path", data, "--weights", "ema")
    assert list(content["results"]) == ["ema"]


def test_stream_size_crop_and_flip_are_those_asked_for(tmp_path, data, evaluate):
    model = make_classifier(tmp_path / "model")
    arguments = ["--data.path", data, "--data.streaming", "True", "--image-size", "48", "40", "--crop-pct", "0.8"]
    content, printed = evaluate(tmp_path / "model", *arguments, "--flip", "--batch-size", "7")

    processing = {"size": {"height": 48, "width": 40}, "crop_pct": 0.8}
    upright = logits_of(model, **processing)
    assert content["image_shape"] == [3, 48, 40]
    assert "streamed from 5 shards" in content["data"]
    assert "48 x 40 pixels, crop share 0.8, averaged with their mirror images" in printed.out
    result = content["results"]["model"]
    assert result["num_images"] == NUM_IMAGES
    loss = F.cross_entropy(upright, torch.tensor(labels())).item()
    assert result["loss"] != pytest.approx(loss, rel=TOLERANCE)
    content, _ = evaluate(tmp_path / "model", *arguments)
    assert content["results"]["model"]["loss"] == pytest.approx(loss, rel=TOLERANCE)


def test_labels_in_another_order_are_matched_by_name(tmp_path, evaluate):
    write_parquet(tmp_path / "data" / "test.parquet")
    model = make_classifier(tmp_path / "model", names=NAMES[::-1])
    content, printed = evaluate(tmp_path / "model", "--data.path", tmp_path / "data")

    assert content["results"]["model"]["accuracy"] == pytest.approx(accuracy(logits_of(model).flip(1)))
    assert "in another order; matched by name" in printed.out


def test_other_labels_need_a_map(tmp_path, data, evaluate):
    make_classifier(tmp_path / "model", names=["chat", "chien", "anguille", "renard", "gnou"])
    _, printed = evaluate(tmp_path / "model", "--data.path", data, status=2)
    assert "The data has 5: cat, dog" in printed.err
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    content, _ = evaluate(tmp_path / "model", "--data.path", data, "--label-map", tmp_path / "names.txt")
    assert content["label_map"] == "by names.txt"


def test_lists_of_right_classes_find_image_files_by_name(tmp_path, evaluate):
    # in folders by class, so that the order is not that of the numbers
    for number, label in enumerate(labels(20)):
        file = tmp_path / "val" / NAMES[label] / f"ILSVRC2012_val_{number + 1:08d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    model = make_classifier(tmp_path / "model")
    answers = logits_of(model, range(20)).argmax(dim=1).tolist()
    # right are the even ones, by the second class of their list; two have none
    lists = [
        [(answer + 1) % 5, answer] if number % 2 == 0 else [(answer + 1) % 5] for number, answer in enumerate(answers)
    ]
    lists[3] = lists[4] = []
    (tmp_path / "real.json").write_text(json.dumps(lists))
    arguments = ["--data.path", tmp_path / "val", "--split", "train", "--label-map", tmp_path / "real.json"]
    content, printed = evaluate(tmp_path / "model", *arguments)

    result = content["results"]["model"]
    assert (result["num_images"], result["num_left_out"], result["num_hits"]) == (18, 2, 9)
    assert "by the numbers in their names" in printed.out


def test_broken_images_are_named_and_too_many_fail_at_the_end(tmp_path, evaluate):
    make_classifier(tmp_path / "model")
    write_parquet(tmp_path / "data" / "test.parquet", broken=range(40, 52))
    arguments = [tmp_path / "model", "--data.path", tmp_path / "data"]
    content, printed = evaluate(*arguments, "--data.max-bad-share", "0.2")
    assert content["results"]["model"]["num_broken"] == 12
    assert content["results"]["model"]["num_images"] == NUM_IMAGES - 12
    assert "row 40: " in printed.err

    (tmp_path / "out" / "result.json").unlink()
    content, printed = evaluate(*arguments, status=3)
    assert content["results"]["model"]["num_broken"] == 12
    assert "12 of 101 images could not be decoded" in printed.err


def test_images_beyond_the_limits_are_broken(tmp_path, data, evaluate):
    make_classifier(tmp_path / "model")
    # every seventh picture has 36 x 40 pixels, the others more
    arguments = ["--data.path", data, "--data.max-image-pixels", 1440, "--data.max-bad-share", 1]
    content, _ = evaluate(tmp_path / "model", *arguments)
    assert content["results"]["model"]["num_images"] == len(range(0, NUM_IMAGES, 7))


def test_other_classifiers_work_at_other_sizes(tmp_path, data, evaluate):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        **names,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    for size in ("32", "48"):
        content, _ = evaluate(tmp_path / "vit", "--data.path", data, "--image-size", size, "--precision", "bf16")
        assert content["image_shape"] == [3, int(size), int(size)]
        assert content["image_processor"] == "ViTImageProcessorPil"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "`batch_size` is 0"),
        (["--image-size", "0"], "`image_size` is 0"),
        (["--split", "nowhere"], "has no split nowhere"),
        (["--weights", "ema"], "`weights` is 'ema', but"),
        (["--crop-pct", "2"], "`crop_pct` must be"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, data, evaluate, arguments, message):
    make_classifier(tmp_path / "model")
    _, printed = evaluate(tmp_path / "model", "--data.path", data, *arguments, status=2)
    assert message in printed.err
    assert printed.out == ""


def test_output_that_cannot_be_written_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "result.json"):
        assert cli.main(["evaluate", "some/model", "--output", str(output)]) == 2
        assert f"`output` is '{output}'" in capsys.readouterr().err


def test_model_in_memory_and_folder_give_the_same_numbers(tmp_path, data):
    model = make_classifier(tmp_path / "model")
    processor = SViTImageProcessorPil(size={"shortest_edge": 32})
    in_memory = evaluate_model(model.train(), data, image_processor=processor, num_workers=0)
    assert in_memory.report.accuracy == pytest.approx(accuracy(logits_of(model)))
    assert in_memory.class_names == NAMES
    assert "accuracy" in in_memory.text()
    # a run's folder stands for its finished model
    model.save_pretrained(tmp_path / "run/model")
    processor.save_pretrained(tmp_path / "run/model")
    options = DataOptions(path=str(data), num_workers=0)
    report = evaluate_model(tmp_path / "run", options, split="test").report
    assert (report.loss, report.calibration_error) == (in_memory.report.loss, in_memory.report.calibration_error)
    with pytest.raises(SViTError, match="`image_processor` is None; a model in memory"):
        evaluate_model(model, data)


def test_credentials_of_an_address_are_not_written(tmp_path, data, evaluate, monkeypatch):
    make_classifier(tmp_path / "model")
    address = "https://user:word@host/cats?X-Amz-Signature=12ab"
    opened = model_evaluation.open_source

    def open_remote(options, split):
        source = opened(DataOptions(path=str(data)), split)
        source.description = f"{address}, split test"
        source.shard_names = (address,)
        return source

    monkeypatch.setattr(model_evaluation, "open_source", open_remote)
    monkeypatch.setattr(sys, "argv", ["svit-hf", "evaluate", f"--data.path={address}"])
    content, printed = evaluate(tmp_path / "model", "--data.path", address)
    assert content["data"] == "https://***@host/cats?X-Amz-Signature=***, split test"
    for text in (json.dumps(content), printed.out, printed.err):
        assert "word@" not in text
        assert "12ab" not in text
