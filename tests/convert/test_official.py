# SPDX-License-Identifier: Apache-2.0
"""What the conversion reads, refuses and writes; tests/model/test_fidelity.py shows that the numbers are right."""

import argparse
import fractions
import json
import os
import pathlib
import zipfile

import pytest
import torch
from golden import official_weights
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from svit_hf import SViTForImageClassification, SViTImageProcessorPil
from svit_hf.convert import build_model, convert_official_checkpoint, infer_config
from svit_hf.convert.key_mapping import is_dropped, to_official
from svit_hf.errors import ConversionError


CHECKPOINT = official_weights.CHECKPOINT
TINY_FIELDS = official_weights.fields_without_shape("tiny")
# relative, in norm; measured: at most 3.2e-7
LOGITS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tiny_weights():
    return official_weights.official_state_dict("tiny")


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "parent" / "converted"


def convert(output_dir, checkpoint=CHECKPOINT, **kwargs):
    return convert_official_checkpoint(checkpoint, output_dir, **({"config": TINY_FIELDS} | kwargs))


def saved(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def assert_nothing_is_left(output_dir):
    assert not output_dir.parent.exists() or not list(output_dir.parent.iterdir())


# what is written


@pytest.mark.parametrize("weights", ["model", "model_ema"])
def test_either_set_of_weights_converts_and_is_named(output_dir, weights):
    report = convert(output_dir, weights=weights)
    assert report.source == weights
    taken = torch.load(CHECKPOINT, weights_only=False)[weights]
    model = AutoModelForImageClassification.from_pretrained(output_dir)
    assert len(model.state_dict()) == len(taken) - len(report.dropped)
    for key, value in model.state_dict().items():
        assert torch.equal(value.flatten(), taken[to_official(key)].flatten())
    assert all(is_dropped(key) for key in report.dropped)
    assert len(report.dropped) == 10


def test_converted_folder_gives_the_official_logits(output_dir):
    convert(output_dir)
    model = AutoModelForImageClassification.from_pretrained(output_dir)
    assert isinstance(model, SViTForImageClassification)
    with torch.no_grad():
        logits = model(official_weights.pixel_values(2, 64, 64)).logits
    recorded = official_weights.recorded("tiny")["64x64.logits"]
    assert (logits - recorded).norm() <= LOGITS_TOLERANCE * recorded.norm()


def test_converted_folder_holds_config_weights_and_preprocessing(output_dir):
    report = convert(output_dir)
    assert report.output_dir == output_dir.resolve()
    assert {path.name for path in output_dir.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert AutoConfig.from_pretrained(output_dir).num_attention_heads == [1, 2, 2, 4]
    assert AutoModel.from_pretrained(output_dir).config.num_labels == 10
    # AutoBackbone asks the Hub about local folders
    assert AutoBackbone.from_config(AutoConfig.from_pretrained(output_dir)).channels == [48]


@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        (None, {"shortest_edge": 224}),
        (384, {"shortest_edge": 384}),
        ([64, 96], {"height": 64, "width": 96}),
    ],
    ids=["default", "384", "pair"],
)
def test_preprocessing_follows_from_the_image_size(output_dir, image_size, size):
    fields = {} if image_size is None else {"image_size": image_size}
    report = convert(output_dir, config=TINY_FIELDS | fields)
    assert report.config.image_size == (image_size or 224)
    assert dict(SViTImageProcessorPil.from_pretrained(output_dir).size) == size


def test_half_precision_weights_become_float32(tmp_path, tiny_weights):
    half = {key: value.half() if value.is_floating_point() else value for key, value in tiny_weights.items()}
    convert(tmp_path / "converted", saved(tmp_path, {"model": half}))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.classifier.weight, half["head.weight"].float())


# which weights


def test_file_without_wrapper_holds_the_model(tmp_path, output_dir, tiny_weights):
    checkpoint = saved(tmp_path, tiny_weights)
    assert convert(output_dir, checkpoint).source == "state dict"
    with pytest.raises(ConversionError, match="no weights under `model_ema`"):
        convert(output_dir, checkpoint, weights="model_ema", overwrite=True)


@pytest.mark.parametrize(("present", "asked"), [("model", "model_ema"), ("model_ema", "model")])
def test_weights_are_never_taken_instead_of_others(tmp_path, output_dir, tiny_weights, present, asked):
    checkpoint = saved(tmp_path, {present: tiny_weights, "epoch": 1})
    with pytest.raises(ConversionError, match=f"no weights under `{asked}`, only under `{present}`"):
        convert(output_dir, checkpoint, weights=asked)
    assert_nothing_is_left(output_dir)
    assert convert(output_dir, checkpoint, weights=present).source == present


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "have to be tensors"),
        ({"state_dict": {"head.weight": torch.ones(1)}, "epoch": 3}, r"'state_dict', 'epoch'"),
        ({"model": {"head.weight": [1.0]}}, "'head.weight'"),
        ({"model": {7: torch.ones(1)}}, r"\[7\]"),
        ({"model": {}}, "have to be tensors"),
    ],
    ids=["list", "empty", "other-wrapper", "not-a-tensor", "not-a-name", "no-weights"],
)
def test_other_content_is_refused(tmp_path, output_dir, content, message):
    with pytest.raises(ConversionError, match=message):
        convert(output_dir, saved(tmp_path, content))


# hostile and damaged files


class Reduces:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Custom:
    pass


class TensorSubclass(torch.Tensor):
    pass


HOSTILE = {
    "system-call": (lambda path: Reduces(os.system, f"touch '{path}'"), "system"),
    "builtin-eval": (lambda path: Reduces(eval, f"open({str(path)!r}, 'w')"), "eval"),
    "custom-class": (lambda path: Custom(), "Custom"),
    "tensor-subclass": (lambda path: torch.ones(2).as_subclass(TensorSubclass), "TensorSubclass"),
    "path": (lambda path: path, "pathlib"),
}


@pytest.mark.parametrize("hide_in", ["model", "args"])
@pytest.mark.parametrize(("make", "name"), HOSTILE.values(), ids=list(HOSTILE))
def test_pickles_of_anything_else_are_refused_unexecuted(
    tmp_path, output_dir, monkeypatch, tiny_weights, make, name, hide_in
):
    # asks torch to unpickle everything where a program leaves the choice open
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness = tmp_path / "executed"
    hostile = make(witness)
    if hide_in == "model":
        content = {"model": tiny_weights | {"head.bias": hostile}}
    else:
        content = {"model": tiny_weights, "args": argparse.Namespace(hostile=hostile)}
    with pytest.raises(ConversionError, match=name) as caught:
        convert(output_dir, saved(tmp_path, content))
    assert "weights_only" not in str(caught.value)
    assert not witness.exists()
    assert_nothing_is_left(output_dir)


def test_what_others_declare_safe_is_refused_and_stays_declared(tmp_path, output_dir, tiny_weights):
    checkpoint = saved(tmp_path, {"model": tiny_weights, "epoch": fractions.Fraction(1, 2)})
    with torch.serialization.safe_globals([fractions.Fraction]):
        declared = set(torch.serialization.get_safe_globals())
        assert torch.load(checkpoint, weights_only=True)["epoch"] == fractions.Fraction(1, 2)
        with pytest.raises(ConversionError, match="Fraction"):
            convert(output_dir, checkpoint)
        assert set(torch.serialization.get_safe_globals()) == declared
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_what_unpacks_to_more_than_the_file_is_refused(tmp_path, output_dir, tiny_weights):
    checkpoint = saved(tmp_path, {"model": tiny_weights | {"more": torch.zeros(1_000_000)}})
    with zipfile.ZipFile(checkpoint) as archive, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConversionError, match=r"it would unpack to 0\.00\d+ GB, more than the file is large"):
        convert(output_dir, tmp_path / "bomb.pth")
    assert_nothing_is_left(output_dir)


@pytest.mark.parametrize("share", ["numbers", "tensors"])
def test_weights_larger_than_the_file_are_refused(tmp_path, output_dir, tiny_weights, share):
    more = torch.zeros(1).expand(10**12) if share == "numbers" else torch.zeros(100_000)
    keys = ["norm.weight"] if share == "numbers" else [f"more.{index}" for index in range(10)]
    checkpoint = saved(tmp_path, {"model": tiny_weights | dict.fromkeys(keys, more)})
    with pytest.raises(ConversionError, match="are larger than the file"):
        convert(output_dir, checkpoint)
    assert_nothing_is_left(output_dir)


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("key", ["head.bias", "norm.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path, output_dir, tiny_weights, key, number):
    broken = tiny_weights[key].clone()
    broken[1] = float(number)
    checkpoint = saved(tmp_path, {"model": tiny_weights | {key: broken}})
    with pytest.raises(ConversionError, match=f"not finite: {key} holds NaN or infinity"):
        convert(output_dir, checkpoint)
    assert_nothing_is_left(output_dir)


@pytest.mark.parametrize("key", ["layers.{}.blocks.0.norm2.weight", "layers.0.blocks.{}.norm2.weight", "layers.{}.x"])
def test_endless_numbers_in_names_are_refused(tmp_path, output_dir, tiny_weights, key):
    weights = tiny_weights | {key.format("9" * 5000): torch.zeros(8)}
    with pytest.raises(ConversionError, match=r"unknown: layers\.[\w.]*9+\.\.\.$") as error:
        convert(output_dir, saved(tmp_path, {"model": weights}))
    assert len(str(error.value)) < 300
    assert_nothing_is_left(output_dir)


def test_old_torch_format_is_read(tmp_path, output_dir, tiny_weights):
    content = {"model": tiny_weights, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    assert convert(output_dir, tmp_path / "old.pth").num_parameters == convert(tmp_path / "new").num_parameters


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99], ids=lambda share: f"{share:.0%}")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_truncated_files_are_refused(tmp_path, output_dir, tiny_weights, share, is_zip):
    whole = tmp_path / "whole.pth"
    torch.save({"model": tiny_weights}, whole, _use_new_zipfile_serialization=is_zip)
    content = whole.read_bytes()
    (tmp_path / "part.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConversionError, match=r"part\.pth' cannot be read"):
        convert(output_dir, tmp_path / "part.pth")
    assert_nothing_is_left(output_dir)


@pytest.mark.parametrize("content", [b"not a checkpoint\n", b"\x00" * 1000], ids=["text", "zeros"])
def test_other_files_are_refused(tmp_path, output_dir, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(ConversionError, match="cannot be read"):
        convert(output_dir, tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["", "missing.pth"], ids=["folder", "missing"])
def test_what_is_no_file_is_refused(tmp_path, output_dir, name):
    with pytest.raises(ConversionError, match="is not a file"):
        convert(output_dir, tmp_path / name)


def test_saved_config_can_be_given(tmp_path, output_dir):
    convert(output_dir)
    fields = json.loads((output_dir / "config.json").read_text())
    report = convert(tmp_path / "again", config=fields)
    assert report.config.to_diff_dict() == AutoConfig.from_pretrained(output_dir).to_diff_dict()


# missing, unknown, wrong


def test_every_missing_unknown_and_wrong_tensor_is_listed(tmp_path, output_dir, tiny_weights):
    weights = dict(tiny_weights)
    missing = ["proj.weight", "layers.1.blocks.1.norm2.running_var", "layers.2.blocks.0.gamma_1"]
    for key in missing:
        del weights[key]
    unknown = {
        "layers.0.blocks.0.attn.relative_position": torch.ones(1),
        # our names are not official ones, not even beside the official ones
        "classifier.weight": weights["head.weight"],
        "layers.0.blocks.0.norm2.momentum": torch.ones(1),
        "fold.weights": torch.ones(9),
    }
    wrong = {
        "patch_embed.proj.0.bias": torch.ones(7),
        "layers.3.blocks.0.gamma_2": torch.ones(48),
        # the first tensor of its stage
        "layers.1.blocks.0.pos_embed.conv.weight": torch.ones(25, 1, 3, 3),
        "layers.0.blocks.0.mlp2.fc1.bias": torch.ones(64, dtype=torch.int32),
        "norm.num_batches_tracked": torch.tensor(7.0),
        "head.weight": torch.ones(10, 64).to_sparse(),
    }
    with pytest.raises(ConversionError) as caught:
        convert(output_dir, saved(tmp_path, {"model": weights | unknown | wrong}))
    lines = str(caught.value).splitlines()[1:]
    assert sorted(line.split()[1] for line in lines if line.startswith("missing: ")) == sorted(missing)
    assert sorted(line.split()[1] for line in lines if line.startswith("unknown: ")) == sorted(unknown)
    assert sorted(line.split()[1] for line in lines if line.startswith("wrong: ")) == sorted(wrong)
    assert len(lines) == len(missing) + len(unknown) + len(wrong)
    assert any("gamma_2 is (48,), torch.float32" in line and "(1, 48, 1, 1)" in line for line in lines)
    assert_nothing_is_left(output_dir)


def test_one_hot_kernels_need_not_be_there(tiny_weights):
    weights = {key: value for key, value in tiny_weights.items() if not is_dropped(key)}
    assert len(weights) == len(tiny_weights) - 10
    build_model(weights, infer_config(weights, config=TINY_FIELDS))


# the reference


@pytest.fixture
def reference(tmp_path):
    logits = official_weights.recorded("tiny")["64x64.logits"]
    pixel_values = official_weights.pixel_values(2, 64, 64)

    def write(**tensors):
        save_file({"pixel_values": pixel_values, "logits": logits} | tensors, tmp_path / "reference.safetensors")
        return tmp_path / "reference.safetensors"

    return write


def test_logits_are_compared_with_the_reference(output_dir, reference):
    assert convert(output_dir, reference=reference()).reference_error <= LOGITS_TOLERANCE


def test_tolerance_is_relative(output_dir, reference):
    logits = official_weights.recorded("tiny")["64x64.logits"] * 1.01
    report = convert(output_dir, reference=reference(logits=logits), tolerance=0.011)
    assert report.reference_error == pytest.approx(0.01 / 1.01, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": official_weights.recorded("tiny")["64x64.logits"] * 1.01}, "differ from `reference` by 0.0099"),
        ({"logits": torch.full((2, 10), torch.nan)}, "differ from `reference` by nan"),
        ({"logits": torch.ones(2, 9)}, r"shape \(2, 9\); the model's are \(2, 10\)"),
        ({"pixel_values": torch.ones(2, 4, 64, 64)}, "cannot be used.*num_channels"),
    ],
    ids=["off", "nan", "classes", "channels"],
)
def test_other_logits_are_refused(output_dir, reference, change, message):
    with pytest.raises(ConversionError, match=message):
        convert(output_dir, reference=reference(**change))
    assert_nothing_is_left(output_dir)


def test_unusable_reference_is_refused(tmp_path, output_dir):
    save_file({"logits": torch.ones(2, 10)}, tmp_path / "reference.safetensors")
    for path in (tmp_path / "reference.safetensors", tmp_path / "missing.safetensors", CHECKPOINT):
        with pytest.raises(ConversionError, match=r"`reference` is .*, which cannot be used"):
            convert(output_dir, reference=path)
    assert_nothing_is_left(output_dir)


# where to


def test_folder_in_use_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="in use"):
        convert(tmp_path, tmp_path / "missing.pth")
    with pytest.raises(ConversionError, match="in use"):
        convert(tmp_path / "notes.txt", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_replaces_its_own_files_only(output_dir):
    output_dir.mkdir(parents=True)
    (output_dir / "notes.txt").write_text("mine")
    (output_dir / "model.safetensors").write_text("old")
    convert(output_dir, overwrite=True)
    assert (output_dir / "notes.txt").read_text() == "mine"
    AutoModelForImageClassification.from_pretrained(output_dir)
    assert [path.name for path in output_dir.parent.iterdir()] == ["converted"]


def test_empty_folder_is_filled(output_dir):
    output_dir.mkdir(parents=True)
    convert(output_dir)
    assert (output_dir / "config.json").is_file()


def test_failure_while_writing_leaves_nothing(output_dir, monkeypatch):
    def fail(self, folder):
        assert (pathlib.Path(folder) / "model.safetensors").is_file()
        raise OSError("no space left")

    monkeypatch.setattr(SViTImageProcessorPil, "save_pretrained", fail)
    with pytest.raises(ConversionError, match="cannot be written: no space left"):
        convert(output_dir)
    assert_nothing_is_left(output_dir)
