# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest
import torch
from dense_models import LABELS, OPTIONS, SIZE, small_model
from safetensors.torch import load_file, save_file

from svit_hf import build_model
from svit_hf.errors import SViTError
from svit_hf.tasks.heads import HEADS
from svit_hf.tasks.saved_models import dense_head, open_task_model


def save(model, head, folder):
    model.save_pretrained(folder)
    HEADS[head].make_processor(SIZE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    return save(small_model("upernet", checkpoint), "upernet", tmp_path_factory.mktemp("upernet"))


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_opened_as_its_task(head, checkpoint, tmp_path):
    model = small_model(head, checkpoint)
    opened = open_task_model(save(model, head, tmp_path))
    assert dense_head(str(tmp_path)) is HEADS[head]
    assert (opened.task.name, opened.task.head.name) == (HEADS[head].tasks[0], head)
    assert (opened.task.labels, opened.task.size) == (LABELS, SIZE)
    assert type(opened.model) is type(model)
    assert not opened.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor), name


def test_a_head_for_two_tasks_knows_its_own(checkpoint, tmp_path):
    options = {"width": 32, "head_options": OPTIONS["mask2former"]}
    model = build_model("instance_segmentation", checkpoint, LABELS, SIZE, "mask2former", **options)
    folder = save(model, "mask2former", tmp_path)
    assert open_task_model(folder).task.name == "instance_segmentation"
    with pytest.raises(SViTError, match="`task` is 'semantic_segmentation'; allowed is 'instance_segmentation'"):
        open_task_model(folder, task="semantic_segmentation")
    # as other programs save it
    edit(tmp_path, "config.json", svit_task=None)
    with pytest.raises(SViTError, match="`task` is None; allowed is 'semantic_segmentation' or 'instance"):
        open_task_model(folder)
    assert open_task_model(folder, task="semantic_segmentation").task.name == "semantic_segmentation"


def test_other_models_are_none(checkpoint, tmp_path):
    assert not dense_head(str(checkpoint))
    assert not dense_head(str(tmp_path))
    assert not dense_head("no/such-model")
    with pytest.raises(SViTError, match="of type 'svit'; a model for segmentation or detection is of one of"):
        open_task_model(checkpoint)


def test_weights_that_are_missing_are_named(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("decode_head"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SViTError, match=f"lacks 1 of the model, such as {name}"):
        open_task_model(folder)


@pytest.mark.parametrize(
    "change",
    [{"image_mean": [0.5, 0.5, 0.5]}, {"size": {"shortest_edge": 64}}, {"do_normalize": False}],
    ids=lambda change: next(iter(change)),
)
def test_pictures_that_are_prepared_otherwise_are_refused(change, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    edit(folder, "preprocessor_config.json", **change)
    with pytest.raises(SViTError, match=f"whose image processor has .*{next(iter(change))}"):
        open_task_model(folder)
