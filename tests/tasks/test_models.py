# SPDX-License-Identifier: Apache-2.0
"""Models for dense tasks: they learn, their weights arrive, what cannot work is refused, and strangers load them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from dense_models import LABELS, OPTIONS, SIZE, pretrained_config, small_model, targets
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from transformers import (
    AutoModelForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import svit_hf
from svit_hf.errors import SViTError
from svit_hf.model import dense_heads_svit
from svit_hf.model.dense_heads_svit import find_doubles
from svit_hf.model.placed_queries_svit import AllPixelsLoss, PlacedDecoder
from svit_hf.tasks.heads import HEADS
from svit_hf.tasks.models import backbone_of, cells_for_image_size, load_backbone


ALWAYS_FREEZING = [name for name, head in HEADS.items() if head.freezes_batch_norms == "always"]
every_head = pytest.mark.parametrize("head", HEADS)


def norms(model):
    return [module for module in backbone_of(model).modules() if "BatchNorm" in type(module).__name__]


@every_head
@pytest.mark.parametrize("empty", [False, True], ids=["objects", "nothing"])
def test_every_head_learns(head, empty, checkpoint):
    model = small_model(head, checkpoint).train()
    loss = model(pixel_values=torch.randn(2, 3, *SIZE), **targets(head, empty)).loss
    loss.backward()
    parameters = dict(backbone_of(model).named_parameters())
    assert loss == 0 if head == "upernet" and empty else loss > 0
    assert torch.isfinite(loss)
    # the last stage's norm is that of the classifier's pooling, which a backbone does not have
    assert all(parameter.grad is not None for parameter in parameters.values() if parameter.requires_grad)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_head
def test_pretrained_weights_arrive_in_every_head(head, checkpoint):
    model = small_model(head, checkpoint)
    saved = {
        name.removeprefix("svit."): tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    arrived = {name.removeprefix("svit."): tensor for name, tensor in backbone_of(model).state_dict().items()}
    assert len(arrived) > 100
    for name, tensor in arrived.items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)
    weights = load_backbone(model, checkpoint)
    assert weights.num_tensors == len(arrived)
    assert weights.largest_difference < 1e-5


@every_head
def test_batch_norms_keep_the_statistics_of_pretrained_weights(head, checkpoint):
    model = small_model(head, checkpoint).train()
    before = {name: buffer.clone() for name, buffer in backbone_of(model).named_buffers()}
    model(pixel_values=3 + torch.randn(2, 3, *SIZE), **targets(head))
    assert norms(model)
    for name, buffer in backbone_of(model).named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_feature_maps_may_have_norms_which_no_checkpoint_needs(checkpoint, tmp_path):
    arguments = ("semantic_segmentation", checkpoint, LABELS, SIZE)
    options = {"width": 32, "head_options": OPTIONS["upernet"]}
    model = svit_hf.build_model(*arguments, normalize_features=True, **options)
    plain = backbone_of(svit_hf.build_model(*arguments, **options))
    assert not [name for name in plain.state_dict() if "norms" in name]
    pixels = torch.randn(1, 3, *SIZE)
    maps = backbone_of(model)(pixels).feature_maps
    for normalized, feature in zip(maps, plain(pixels).feature_maps, strict=True):
        expected = torch.nn.functional.layer_norm(feature.movedim(1, -1), feature.shape[1:2], eps=1e-6).movedim(-1, 1)
        torch.testing.assert_close(normalized, expected)
    for norm in backbone_of(model).feature_norms.values():
        torch.nn.init.constant_(norm.weight, 2)
    model.save_pretrained(tmp_path)
    again = backbone_of(type(model).from_pretrained(tmp_path))(pixels).feature_maps
    torch.testing.assert_close(again, tuple(2 * feature for feature in maps))


@pytest.mark.parametrize("head", sorted(set(HEADS) - set(ALWAYS_FREEZING)))
def test_batch_norms_of_random_weights_learn_statistics(head):
    model = small_model(head, pretrained_config()).train()
    model(pixel_values=3 + torch.randn(2, 3, *SIZE), **targets(head))
    assert all(norm.running_mean.abs().max() > 0 for norm in norms(model))


@pytest.mark.parametrize("head", ALWAYS_FREEZING)
def test_random_weights_are_refused_where_norms_are_frozen(head):
    with pytest.raises(SViTError, match=f"{head}.*freezes.*pre-trained weights"):
        small_model(head, pretrained_config())


@pytest.mark.parametrize(("task", "is_placed"), [("semantic_segmentation", False), ("instance_segmentation", True)])
def test_queries_for_instances_start_at_pixels(task, is_placed):
    options = {"encoder_layers": 1, "decoder_layers": 2}
    model = svit_hf.build_model(task, pretrained_config(), LABELS, SIZE, "mask2former", width=32, head_options=options)
    assert model.config.places_queries == is_placed
    assert isinstance(model.model.transformer_module.decoder, PlacedDecoder) == is_placed
    assert isinstance(model.criterion, AllPixelsLoss) == is_placed


def test_boxes_that_overlap_better_ones_of_their_class_are_doubles():
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.6, 0.4, 0.4], [0.5, 0.7, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    logits = torch.tensor([[[3.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 3.0]]])
    # neighbours share 0.6, the first and the third a third
    assert find_doubles(logits, boxes, 0.5)[0].tolist() == [[False, True], [True, True], [True, False], [False, False]]
    assert not find_doubles(logits, boxes, 0.61).any()
    assert find_doubles(logits.roll(1, 1), boxes, 0.5)[0, :, 0].tolist() == [True, False, True, False]
    assert not find_doubles(torch.zeros(1, 4, 2), boxes, 0.5).any()


def test_d_fine_keeps_one_of_boxes_that_overlap(tmp_path):
    torch.manual_seed(0)
    options = OPTIONS["d_fine"] | {"num_queries": 100}
    plain = svit_hf.build_model("detection", pretrained_config(), LABELS, SIZE, width=32, head_options=options)
    # at first all scores are the same
    for parameter in plain.model.decoder.class_embed.parameters():
        torch.nn.init.normal_(parameter)
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path, max_overlap=0.05)
    pixels = torch.randn(2, 3, *SIZE)
    expected, outputs = plain(pixels), model(pixels)
    is_double = find_doubles(expected.logits, expected.pred_boxes, 0.05)
    assert 0 < is_double.float().mean() < 1
    assert (outputs.logits[is_double].sigmoid() == 0).all()
    torch.testing.assert_close(outputs.logits[~is_double], expected.logits[~is_double], rtol=0, atol=0)
    torch.testing.assert_close(model(pixels, return_dict=False)[0], outputs.logits, rtol=0, atol=0)
    # training, and the loss of an evaluation, see all boxes
    losses = [each(pixels, **targets("d_fine")).loss for each in (plain, model)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert model.train()(pixels).logits.min() > -100
    model.save_pretrained(tmp_path)
    assert type(plain).from_pretrained(tmp_path).config.max_overlap == 0.05


@pytest.mark.parametrize("value", [0, 1.5, "0.5"])
def test_impossible_overlaps_are_refused(value):
    with pytest.raises(SViTError, match="max_overlap"):
        svit_hf.build_model("detection", pretrained_config(), LABELS, SIZE, head_options={"max_overlap": value})


def test_loss_of_a_half_ignored_batch_is_that_of_the_rest(checkpoint):
    model = small_model("upernet", checkpoint)
    pixels, labels = torch.randn(1, 3, *SIZE), torch.randint(0, 3, (1, *SIZE))
    labels[:, :32] = 255
    outputs = model(pixel_values=pixels, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :, 32:], labels[:, 32:])
    auxiliary = model.auxiliary_head(backbone_of(model)(pixels).feature_maps)
    auxiliary = torch.nn.functional.interpolate(auxiliary, size=SIZE, mode="bilinear", align_corners=False)
    expected += 0.4 * torch.nn.functional.cross_entropy(auxiliary[:, :, 32:], labels[:, 32:])
    torch.testing.assert_close(outputs.loss, expected)
    with_tuple = model(pixel_values=pixels, labels=labels, return_dict=False)
    torch.testing.assert_close(with_tuple[0], expected)


@every_head
def test_trainer_does_not_multiply_the_loss(head, checkpoint):
    assert small_model(head, checkpoint).accepts_loss_kwargs is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "depth"}, "`task` is 'depth'; allowed are"),
        ({"head": "d_fine"}, "`head` is 'd_fine'; for 'semantic_segmentation' allowed are"),
        ({"labels": []}, "`labels` is"),
        ({"labels": "cell"}, "`labels` is 'cell'"),
        ({"labels": ["cell", "hole", "cell"]}, "'cell' 2 times"),
        ({"labels": ["cell", " "]}, "every class needs a name"),
        ({"labels": ["cell", 3]}, "every class needs a name"),
        ({"image_size": 32}, "`image_size` is 32; allowed are multiples of 32 from 64 up"),
        ({"image_size": (64, 100)}, "`image_size` is"),
        ({"image_size": (64, 64, 3)}, "`image_size` is"),
        ({"image_size": "64"}, "`image_size` is"),
        ({"width": 40}, "`width` is 40; allowed are multiples of 32"),
        (
            {"task": "detection", "head": "deformable_detr", "image_size": 64},
            r"`image_size` is \(64, 64\) and `width` is 32: the last feature map of the head 'deformable_detr'",
        ),
        ({"head_options": {"pool_scale": [1]}}, "no option 'pool_scale'"),
        ({"head_options": {"hidden_size": "wide"}}, "`head_options` .* are not possible .*hidden_size"),
        ({"backbone": "no/such/folder"}, "no config that can be read"),
        (
            {
                "backbone": tiny_config(
                    hidden_sizes=[8],
                    depths=[1],
                    num_attention_heads=[1],
                    super_token_sizes=[1],
                    num_sampling_iterations=[1],
                    use_layer_scale=[False],
                )
            },
            "has 1 stages",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_is_refused(change, message):
    arguments = {
        "task": "semantic_segmentation",
        "backbone": pretrained_config(),
        "labels": LABELS,
        "image_size": SIZE,
        "width": 32,
        **change,
    }
    with pytest.raises(SViTError, match=f"(?s){message}"):
        svit_hf.build_model(**arguments)


def test_other_models_are_no_backbone(tmp_path):
    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(SViTError, match="of type 'resnet'; a backbone has to be of type 'svit'"):
        svit_hf.build_model("detection", tmp_path, LABELS, SIZE)
    head = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 8, 8, 8],
                depths=[1, 1, 1, 1],
                layer_type="basic",
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            hidden_size=8,
            auxiliary_in_channels=8,
        )
    )
    with pytest.raises(SViTError, match="contains 0 SViT backbones"):
        load_backbone(head, tmp_path)


@pytest.mark.parametrize("freezes", [False, True])
def test_weights_arrive_in_a_head_that_was_built_elsewhere(freezes, checkpoint):
    config = pretrained_config()
    config.out_features = ["stage2", "stage3", "stage4"]
    head = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=config,
            encoder_in_channels=[32, 32, 64],
            encoder_hidden_dim=32,
            decoder_in_channels=[32] * 3,
            d_model=32,
            freeze_backbone_batch_norms=freezes,
            **{name: value for name, value in OPTIONS["d_fine"].items() if name != "num_denoising"},
        )
    )
    num_tensors = load_backbone(head, checkpoint).num_tensors
    assert num_tensors == len(backbone_of(head).state_dict())
    name = next(key for key in load_file(checkpoint / "model.safetensors") if re.search(r"stages\.3.*weight", key))
    assert torch.equal(backbone_of(head).state_dict()[name], load_file(checkpoint / "model.safetensors")[name])


def edit_weights(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("head", ["upernet", "d_fine", "detr"])
def test_a_missing_tensor_is_an_error(head, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    lost = "svit.stages.1.layers.0.mlp"
    edit_weights(
        tmp_path / "copy", lambda tensors: tensors.pop(next(name for name in tensors if name.startswith(lost)))
    )
    with pytest.raises(SViTError, match=rf"1 of \d+ tensors .* would stay random, {lost}"):
        small_model(head, tmp_path / "copy")


def test_damaged_weights_are_an_error(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SViTError, match="cannot be loaded"):
        small_model("upernet", tmp_path / "copy")


def test_weights_of_another_architecture_are_an_error(checkpoint):
    # as many heads or a hidden layer more change no shape, or every one
    config = pretrained_config()
    config.num_attention_heads = [1, 1, 1, 2]
    with pytest.raises(SViTError, match=r"has num_attention_heads=\[1, 1, 2, 2\], the backbone of the model"):
        load_backbone(small_model("upernet", config), checkpoint)


def test_a_backbone_that_computes_something_else_is_an_error(checkpoint):
    model = small_model("upernet", pretrained_config())
    # what frozen norms of another epsilon would do
    norms(model)[-1].eps = 0.1
    with pytest.raises(SViTError, match="features of a probe image differ"):
        load_backbone(model, checkpoint)


def test_drop_path_reaches_the_backbone(checkpoint):
    model = svit_hf.build_model(
        "semantic_segmentation",
        checkpoint,
        LABELS,
        SIZE,
        width=32,
        drop_path_rate=0.25,
        head_options=OPTIONS["upernet"],
    )
    assert backbone_of(model).config.drop_path_rate == 0.25


@pytest.mark.parametrize(
    ("own", "size", "cells"),
    [
        (224, (224, 224), [8, 4, 1, 1]),
        (224, (512, 512), [8, 4, 1, 1]),
        (224, (544, 544), [8, 4, 1, 1]),
        (224, (576, 576), [16, 8, 2, 1]),
        (224, (800, 1344), [16, 8, 2, 1]),
        (224, (1280, 1280), [32, 16, 4, 1]),
        # trained with the cells that it has
        (800, (800, 1344), [8, 4, 1, 1]),
        (800, (224, 224), [8, 4, 1, 1]),
    ],
)
def test_cells_grow_with_the_image(own, size, cells):
    assert cells_for_image_size(svit_hf.SViTConfig(image_size=own), size) == cells


def test_cells_of_two_edges_grow(checkpoint):
    config = svit_hf.SViTConfig(super_token_sizes=[[8, 4], 4, 1, [2, 1]])
    assert cells_for_image_size(config, (640, 640)) == [[16, 8], 8, 2, [2, 1]]
    config = pretrained_config()
    model = svit_hf.build_model("semantic_segmentation", config, LABELS, 640, width=32)
    assert backbone_of(model).config.super_token_sizes == [8, 4, 2, 1]


LOAD_EVERY_HEAD = """
import importlib.util, json, sys
import torch, transformers
from PIL import Image
from transformers import AutoImageProcessor, pipeline
assert importlib.util.find_spec("svit_hf") is None
pictures = [Image.linear_gradient("L").convert("RGB").resize((90, 70)), Image.radial_gradient("L").convert("RGB")]
for head in json.loads(sys.argv[2]):
    folder = f"{sys.argv[1]}/{head}"
    config = json.load(open(folder + "/config.json"))
    auto_class = getattr(transformers, next(name for name in config["auto_map"] if name.startswith("AutoModel")))
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(folder + "-again")
    AutoImageProcessor.from_pretrained(folder).save_pretrained(folder + "-again")
    again = auto_class.from_pretrained(folder + "-again", trust_remote_code=True)
    expected = torch.load(folder + "/probe.pt")
    with torch.no_grad():
        for loaded in (model, again):
            output = loaded(expected["pixels"]).to_tuple()[0]
            # one process against another: 2e-4 of the largest, where that is 1e-5
            difference = (output - expected["output"]).abs().max() / expected["output"].abs().max()
            assert difference < 1e-3, (head, difference)
    task = "object-detection" if "ObjectDetection" in auto_class.__name__ else "image-segmentation"
    pipe = pipeline(task, folder + "-again", trust_remote_code=True)
    options = {"subtask": "semantic"} if task == "image-segmentation" else {"threshold": 0.0}
    results = pipe(pictures, batch_size=2, **options)
    single = [pipe(picture, **options) for picture in pictures]
    for picture, objects, alone in zip(pictures, results, single, strict=True):
        assert len(objects) == len(alone) > 0
        for entry in objects:
            assert entry["label"] in ("cell", "hole", "rim"), entry
            assert "mask" not in entry or entry["mask"].size == picture.size
    print(head)
"""


def test_strangers_load_every_head_and_save_it_again(checkpoint, tmp_path, fresh_python):
    for head in HEADS:
        model = small_model(head, checkpoint)
        model.save_pretrained(tmp_path / head)
        HEADS[head].make_processor(SIZE).save_pretrained(tmp_path / head)
        pixels = torch.randn(2, 3, *SIZE)
        with torch.no_grad():
            output = model(pixels).to_tuple()[0]
        torch.save({"pixels": pixels, "output": output}, tmp_path / head / "probe.pt")
    printed = fresh_python("-c", LOAD_EVERY_HEAD, tmp_path, json.dumps(list(HEADS)), hidden=["svit_hf"])
    assert printed.split() == list(HEADS)


def test_everything_that_is_needed_is_imported_by_name():
    # Transformers 5.5 looks no further
    file = dense_heads_svit.__file__
    assert {f"{name}.py" for name in get_relative_imports(file)} == {
        Path(needed).name for needed in get_relative_import_files(file)
    }


def test_own_classes_load_without_trust_and_ship_their_code(checkpoint, tmp_path):
    small_model("d_fine", checkpoint).save_pretrained(tmp_path / "saved")

    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "saved")
    assert type(model).__module__ == "svit_hf.model.dense_heads_svit"
    model.save_pretrained(tmp_path / "again")
    code = {path.name for path in (tmp_path / "again").glob("*.py")}
    assert (
        code
        == {path.name for path in (tmp_path / "saved").glob("*.py")}
        >= {"dense_heads_svit.py", "modeling_svit.py"}
    )
