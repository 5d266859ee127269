# SPDX-License-Identifier: Apache-2.0
"""Runs of segmentation and detection by the loop that trains classifiers: tiny models, pictures of two squares."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from rank_launch import Launch, assert_same_run, run_ranks
from rank_programs import train_twice_and_be_killed_once
from recipe_changes import changed
from safetensors.torch import load_file
from square_pictures import write_squares
from transformers import pipeline
from transformers.loss import loss_for_object_detection
from transformers.models.mask2former import modeling_mask2former

from svit_hf.data.options import DataOptions
from svit_hf.data.sharding import SampleKey
from svit_hf.data.shards import ShardOptions
from svit_hf.errors import DataError, EvaluationError, SViTError, TrainingInterruptedError
from svit_hf.hub.publication import prepare_publication
from svit_hf.recipes import RECIPES
from svit_hf.tasks import evaluation
from svit_hf.tasks.saved_models import open_task_model
from svit_hf.tasks.semantic_segmentation import SemanticSegmentation
from svit_hf.tasks.shards import write_annotated_shards
from svit_hf.tasks.task import TrainingExamples
from svit_hf.training import loop
from svit_hf.training.recipe_files import to_json
from svit_hf.training.task_of_recipe import open_data
from svit_hf.training.train import train


pytestmark = pytest.mark.usefixtures("no_curves")

LAYOUT = {
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "super_token_sizes": [2, 2, 1, 1],
    "drop_path_rate": 0.1,
}
SMALL_TRANSFORMER = {"num_queries": 6, "encoder_layers": 1, "decoder_layers": 2}
CHANGES = {
    "segment_semantic": {"task__labels": ["nothing", "large", "small"], "task__head_options": {"pool_scales": [1, 2]}},
    "segment_instance": {
        "optimization__ema_decay": 0.0,
        "task__labels": ["square"],
        "task__head_options": {**SMALL_TRANSFORMER, "num_attention_heads": 2, "train_num_points": 64},
    },
    "detect": {
        "optimization__ema_decay": 0.0,
        "task__head_options": {
            **SMALL_TRANSFORMER,
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_denoising": 4},
        },
    },
}
NUM_TRAIN, NUM_TEST = 13, 5
TASKS = {name: RECIPES[name]().task.name for name in CHANGES}


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"), {"train": NUM_TRAIN, "test": NUM_TEST})


@pytest.fixture(scope="session")
def shards(squares, tmp_path_factory):
    """Return a function that gives shards of the squares for a recipe, with row groups of 3."""
    written = {}

    def write(name):
        if name not in written:
            written[name] = tmp_path_factory.mktemp(name) / "shards"
            labels = CHANGES[name].get("task__labels", ())
            options = ShardOptions(rows_per_shard=6, row_group_size=3)
            write_annotated_shards(TASKS[name], DataOptions(str(squares)), written[name], options, labels)
        return written[name]

    return write


def recipe_of(name, squares, **values):
    """Return a recipe of three updates, each of two micro-batches of two pictures."""
    values = {
        **CHANGES[name],
        **{"data__path": str(squares), "data__num_workers": 0, "model__config": LAYOUT, "model__image_size": 64},
        **{"optimization__epochs": 1, "optimization__warmup_epochs": 0.5, "optimization__batch_size": 4},
        **{"optimization__device_batch_size": 2, "run__log_every_updates": 1, "run__evaluate_every_epochs": 1},
        **{"task__width": 32, "task__crop_size": 0},
        **values,
    }
    return changed(RECIPES[name](), **values)


@pytest.mark.parametrize(
    ("name", "streaming", "size"),
    [("segment_semantic", None, [64, 96]), ("segment_instance", True, 64), ("detect", True, [96, 64])],
    ids=CHANGES,
)
def test_stopped_run_is_the_same_run_and_leaves_a_model(
    name, streaming, size, squares, shards, hub, tmp_path, stop_at, monkeypatch
):
    # whatever ranks have on average, losses divide by the objects of their own batch
    for module in (loss_for_object_detection, modeling_mask2former):
        monkeypatch.delattr(module, "reduce")
    data = {"data__path": str(shards(name)), "data__streaming": True, "data__shuffle_block": 4} if streaming else {}
    recipe = recipe_of(name, squares, augmentation__num_views=2, model__image_size=size, **data)
    report = train(changed(recipe, run__push_to="tester/squares"), tmp_path / "whole")
    stop_at(0)
    with pytest.raises(TrainingInterruptedError, match="after update 2 of 3"):
        train(recipe, tmp_path / "stopped")
    stop_at(None)
    train(recipe, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert json.loads((tmp_path / "whole" / "report.json").read_text()) == report
    metric = {"segment_semantic": "mean_iou"}.get(name, "map")
    assert all(0 <= metrics[metric] <= 1 for metrics in report["metrics"].values())
    assert report["metrics"]["raw"]["num_images"] == NUM_TEST
    with Image.open(tmp_path / "whole" / "predictions.png") as sheet:
        assert sheet.size == (4 * evaluation.TILE, 2 * evaluation.TILE)
        assert len(sheet.getcolors(1 << 20)) > 100
    (tmp_path / "pushed").write_bytes(hub.repositories["tester/squares"].contents()["model.safetensors"])
    best = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "pushed"), best, rtol=0, atol=0)
    assert open_task_model(tmp_path / "whole").task.size == recipe.model.image_shape
    task = "object-detection" if name == "detect" else "image-segmentation"
    found = pipeline(task, str(tmp_path / "whole" / "model"))(str(squares / "test" / "images" / "1.png"))
    assert {entry["label"] for entry in found} <= set(report["data"]["label_names"])
    publication = prepare_publication(tmp_path / "whole", "someone/squares")
    assert {"probe.safetensors", "dense_heads_svit.py"} <= {file.path_in_repo for file in publication.files}
    card = ModelCard(publication.card).data
    stated = {result.metric_name: result.metric_value for result in card.eval_results}
    assert card.pipeline_tag == task
    assert stated[metric.replace("_", " ")] == report["metrics"][report["chosen"]][metric]


def test_what_the_recipe_says_of_augmentation_reaches_the_task(squares):
    recipe = recipe_of("segment_semantic", squares, augmentation__color_jitter=0.4, task__quarter_turn=0.25)
    augmentation = open_data(recipe, Accelerator(cpu=True)).task.augmentation
    assert (augmentation.color, augmentation.scale) == (0.4, (0.15, 0.4))
    assert (augmentation.vertical_flip, augmentation.quarter_turn) == (0.5, 0.25)


def test_views_of_a_sample_differ_and_come_again(squares):
    task = SemanticSegmentation(["nothing", "large", "small"], 64)
    sample = task.read(*task.find_rows(squares, "train")[1])
    keys = [
        SampleKey(*numbers) for numbers in ((0, 0, 1), (0, 0, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 2), (0, 0, 1, 0))
    ]
    pixels = [task.training_example(sample, key)["pixel_values"] for key in keys]
    assert torch.equal(pixels[0], pixels[-1])
    assert not any(torch.equal(pixels[0], other) for other in pixels[1:-1])
    again = TrainingExamples(task, task.find_rows(squares, "train"))[1]["pixel_values"]
    assert torch.equal(again, pixels[0])


def test_broken_pictures_are_counted_and_impossible_annotations_end_the_run(squares, tmp_path):
    folder = shutil.copytree(squares, tmp_path / "data")
    for split in ("train", "test"):
        (folder / split / "images" / "2.png").write_bytes(b"no picture")
    report = train(recipe_of("segment_semantic", folder, data__max_bad_share=0.5), tmp_path / "run")
    assert report["bad_images"] == 1
    assert {(metrics["num_images"], metrics["num_broken"]) for metrics in report["metrics"].values()} == {(4, 1)}

    with pytest.raises(DataError, match=r"^\d+.png, the whole mask: the mask has the values \[2\]; the 2 classes"):
        train(recipe_of("segment_semantic", folder, task__labels=["nothing", "large"]), tmp_path / "fewer")
    (folder / "classes.txt").unlink()
    with pytest.raises(SViTError, match=r"`task.labels` is empty, and .* does not name its classes"):
        train(recipe_of("segment_semantic", folder, task__labels=[]), tmp_path / "unnamed")
    (folder / "train" / "masks" / "3.png").write_bytes((folder / "test" / "images" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"^3.png, the whole mask: the mask cannot be read: it has mode 'RGB'"):
        train(recipe_of("segment_semantic", folder), tmp_path / "other")


@pytest.mark.parametrize("counted", [[0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 3]], ids=["twice", "one for another"])
def test_pictures_that_are_counted_twice_are_found_out(squares, tmp_path, monkeypatch, counted):
    monkeypatch.setattr(loop, "gather_object", lambda shares: [(shares[0][0], counted, *shares[0][2:])])
    with pytest.raises(EvaluationError, match=rf"{len(counted)} images were counted, and 5 were expected"):
        train(recipe_of("segment_semantic", squares, optimization__ema_decay=0.0), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("segment_semantic", {"task__annotations__box_format": "xyxy"}, "`box_format` is 'xyxy'; the task 'semantic"),
        ("segment_semantic", {"task__head": "d_fine"}, "`head` is 'd_fine'; for 'semantic_segmentation' allowed are"),
        ("segment_semantic", {"data__eval_split": "other"}, "has no split 'other'"),
        ("segment_semantic", {"data__streaming": True}, "`streaming` is True, but .* is a folder of pictures"),
        ("segment_semantic", {"data__path": "USER/cells"}, "`path` is 'USER/cells', which is no file or folder here"),
        ("segment_semantic", {"mixing__mixup_alpha": 0.2}, "`mixing.mixup_alpha` is 0.2; with `task.name`"),
        ("segment_semantic", {"augmentation__random_erasing": 0.1}, "it has to be 0.0"),
        ("detect", {"run__parallelism": "fsdp2"}, "with the head 'd_fine' it has to be 'ddp'"),
        ("detect", {"task__head_options": {"queries": 3}}, "the head 'd_fine' has no option 'queries'"),
        ("detect", {"model__config": {"depths": [1]}}, "`model.config` does not describe a model"),
        ("smoke", {"model__image_size": [32, 64]}, r"`model.image_size` is \(32, 64\); .* it has to be one edge"),
        ("smoke", {"task__head": "upernet"}, "`task.head` is 'upernet', which says nothing about `task.name`"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_written(name, values, message, squares, tmp_path):
    recipe = changed(RECIPES[name](), data__path=str(squares), **values) if name == "smoke" else None
    with pytest.raises(SViTError, match=message):
        train(recipe or recipe_of(name, squares, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_annotations_are_another_training(squares, tmp_path):
    folder = shutil.copytree(squares, tmp_path / "data")
    recipe = recipe_of("segment_semantic", folder)
    train(recipe, tmp_path / "run")
    Image.fromarray(np.eye(90, dtype=np.uint8)[:70]).save(folder / "train" / "masks" / "5.png")
    with pytest.raises(SViTError, match=r"another training: training data: '5.png' was \d+ and is \d+"):
        train(recipe, tmp_path / "run")


def numbers_of(run_dir):
    report = json.loads((run_dir / "report.json").read_text())
    return {
        weights: {name: value for name, value in metrics.items() if "seconds" not in name and "per_second" not in name}
        for weights, metrics in report["metrics"].items()
    }


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_killed_and_resumed_are_the_same_run_and_that_of_one_rank(squares, tmp_path):
    values = {"run__canonical_sums": True, "run__save_every_updates": 1, "optimization__micro_batches": 2}
    recipe = recipe_of("segment_semantic", squares, run__evaluation_batch_size=2, **values)
    (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
    output = run_ranks(train_twice_and_be_killed_once, tmp_path / "output.txt", tmp_path)
    assert output.count("done") == 2, output
    assert "starts at      update 2" in output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    train(recipe, tmp_path / "alone")
    assert_same_run(tmp_path / "whole", tmp_path / "alone")
    assert numbers_of(tmp_path / "whole") == numbers_of(tmp_path / "alone")


@pytest.mark.campaign
@pytest.mark.parametrize("name", CHANGES)
def test_a_stream_goes_on_with_more_ranks_bit_for_bit(name, squares, shards, tmp_path):
    values = {"run__canonical_sums": True, "run__save_every_updates": 1, "run__evaluation_batch_size": 2}
    data = {"data__path": str(shards(name)), "data__streaming": True, "data__shuffle_block": 4, "data__num_workers": 1}
    recipe = recipe_of(name, squares, optimization__epochs=2, optimization__micro_batches=2, **values, **data)
    (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
    command = ["-m", "svit_hf", "train", "--recipe", str(tmp_path / "recipe.json"), "--output-dir"]
    assert "done" in Launch(squares, tmp_path / "alone", *command, str(tmp_path / "alone"), num_ranks=1).end()
    for num_ranks in (1, 2):
        launch = Launch(squares, tmp_path / "killed", *command, str(tmp_path / "killed"), num_ranks=num_ranks)
        launch.kill_at(2 * num_ranks)
    output = Launch(squares, tmp_path / "killed", *command, str(tmp_path / "killed")).end()
    assert "done" in output, output
    assert_same_run(tmp_path / "alone", tmp_path / "killed")
    assert numbers_of(tmp_path / "alone") == numbers_of(tmp_path / "killed")


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "parallelism"), [*((name, "ddp") for name in CHANGES), ("segment_semantic", "fsdp2")]
)
def test_killed_ranks_go_on_bit_for_bit(name, parallelism, squares, tmp_path):
    values = {"run__save_every_updates": 2, "data__num_workers": 1, "run__parallelism": parallelism}
    recipe = recipe_of(name, squares, optimization__epochs=3, **values)
    (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
    command = ["-m", "svit_hf", "train", "--recipe", str(tmp_path / "recipe.json"), "--output-dir"]
    assert "done" in Launch(squares, tmp_path / "whole", *command, str(tmp_path / "whole")).end()
    for update in (2, 5):
        Launch(squares, tmp_path / "killed", *command, str(tmp_path / "killed")).kill_at(update)
    output = Launch(squares, tmp_path / "killed", *command, str(tmp_path / "killed")).end()
    assert "done" in output, output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
