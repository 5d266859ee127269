# SPDX-License-Identifier: Apache-2.0
"""Models for segmentation and detection are published and checked as classifiers are."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from dense_models import SIZE, save_model
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from svit_hf import cli
from svit_hf.errors import SViTError
from svit_hf.hub import probe
from svit_hf.hub.model_card import CardText, Evaluation
from svit_hf.hub.probe import PROBE_FILE, compare_with_probe
from svit_hf.hub.publication import prepare_publication
from svit_hf.tasks.saved_models import open_task_model


REPO = "someone/cells"
CARD = CardText("cells", REPO, "A summary.", "Some data.", "a command", {}, [], "Limits.", "From somewhere.")
TAGS = {
    "semantic_segmentation": ("image-segmentation", 'segment("picture.png", subtask="semantic")'),
    "instance_segmentation": ("image-segmentation", 'segment("picture.png")'),
    "detection": ("object-detection", 'detect("picture.png")'),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that gives a new folder with a model for a task."""

    def save(task):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(task)
        save_model(task, folder, size=SIZE)
        return folder

    return save


@pytest.mark.parametrize("task", TAGS)
def test_what_is_published_loads_and_is_checked(task, saved, tmp_path, capsys):
    folder = saved(task)
    metrics = {"mean_iou": 0.5, "map": 0.25}
    card = replace(CARD, evaluations=[Evaluation("nuclei", "nuclei", "test", 40, metrics)])
    publication = prepare_publication(folder, REPO, card)
    for file in publication.files:
        content = file.path_or_fileobj
        target = tmp_path / file.path_in_repo
        target.write_bytes(content) if isinstance(content, bytes) else shutil.copyfile(content, target)
    assert (tmp_path / "dense_heads_svit.py").is_file()
    tag, call = TAGS[task]
    published = ModelCard.load(tmp_path / "README.md")
    assert published.data.pipeline_tag == tag
    assert f'pipeline("{tag}", model="{REPO}", trust_remote_code=True)\nprint({call})' in published.text
    stated = {result.metric_type: (result.task_type, result.metric_value) for result in published.data.eval_results}
    assert stated == {"mean_iou": (tag, 0.5), "map": (tag, 0.25)}

    opened = open_task_model(tmp_path)
    assert compare_with_probe(opened.model, tmp_path) < 1e-5
    assert (tmp_path / PROBE_FILE).stat().st_size < 100_000
    assert cli.main(["doctor", str(tmp_path)]) == 0
    assert "the outputs are those of the probe" in capsys.readouterr().out
    with torch.no_grad():
        for parameter in opened.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    opened.model.save_pretrained(tmp_path)
    assert compare_with_probe(opened.model, tmp_path) > 1e-3
    assert cli.main(["doctor", str(tmp_path)]) == 1
    assert "the outputs differ from those of the probe" in capsys.readouterr().out


def test_the_order_of_queries_is_no_difference():
    boxes = torch.rand(1, 30, 4)
    torch.testing.assert_close(probe._summary(boxes.flip(1)), probe._summary(boxes))


@pytest.mark.parametrize("task", TAGS)
def test_nothing_is_loaded_beside_a_training(task, saved, monkeypatch):
    folder = saved(task)
    # which would change how other threads initialize and tie weights meanwhile, and draw from their random numbers
    monkeypatch.delattr(PreTrainedModel, "from_pretrained")
    state = torch.get_rng_state()
    prepare_publication(folder, REPO, CARD, add_probe=False)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SViTError, match=rf"asks for: missing: .*{name}"):
        prepare_publication(folder, REPO, CARD, add_probe=False)


def test_what_is_not_whole_is_refused(saved):
    folder = saved("semantic_segmentation")
    code = (folder / "modeling_svit.py").read_bytes()
    (folder / "modeling_svit.py").unlink()
    with pytest.raises(SViTError, match=r"code is missing .*save the model with `model\.save_pretrained`"):
        prepare_publication(folder, REPO, CARD)
    (folder / "modeling_svit.py").write_bytes(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    with pytest.raises(SViTError, match="has no `auto_map` for AutoConfig, AutoModelForSemanticSegmentation"):
        prepare_publication(folder, REPO, CARD)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"other": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SViTError, match=r"does not hold the weights that config\.json asks for: unknown: other"):
        prepare_publication(folder, REPO, CARD)
