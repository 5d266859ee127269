# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import tyro
from golden import official_weights
from safetensors.torch import save_file
from transformers import AutoConfig

from svit_hf.convert.command import ConvertCommand
from svit_hf.errors import ConversionError, SViTError


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(official_weights.fields_without_shape("tiny")))
    return path


@pytest.fixture
def convert(tmp_path, config_file):
    """Return a function that runs the command, with more arguments, and writes to `tmp_path / "converted"`."""

    def run(*arguments):
        command = [official_weights.CHECKPOINT, tmp_path / "converted", "--config", config_file, *arguments]
        return tyro.cli(ConvertCommand, args=[str(argument) for argument in command]).run()

    return run


def test_command_converts_and_says_what_it_took(tmp_path, convert, capsys):
    assert convert() == 0
    assert AutoConfig.from_pretrained(tmp_path / "converted").num_attention_heads == [1, 2, 2, 4]
    num_parameters = sum(
        official_weights.fill(key, tuple(shape)).numel()
        for key, shape in official_weights.LAYOUTS["tiny"]["state_dict"].items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", "fold.weights"))
    )
    summary, _, next_step = capsys.readouterr().out.partition("\n\n")
    assert f"svit-hf predict {tmp_path / 'converted'} " in next_step
    lines = dict(line.strip().split(maxsplit=1) for line in summary.splitlines())
    assert lines["architecture"] == "SViT, none of the published models"
    assert lines["hidden_sizes"] == "[16, 24, 32, 48]"
    assert lines["num_sampling_iterations"] == "[1, 1, 1, 1]"
    assert lines["weights"] == f"model, {num_parameters / 1e6:.2f} M parameters"
    assert lines["reference"] == "not compared"


def test_moving_average_is_taken_where_it_is_asked_for(convert, capsys):
    assert convert("--weights", "model_ema") == 0
    assert "model_ema, " in capsys.readouterr().out


def test_labels_name_the_classes(tmp_path, convert):
    # two classes of ImageNet-1k are called "crane"
    labels = ["crane", "Zürich", "crane", *"abcdefg"]
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    assert convert("--labels", tmp_path / "labels.txt") == 0
    config = AutoConfig.from_pretrained(tmp_path / "converted")
    assert [config.id2label[index] for index in range(10)] == labels
    assert config.label2id["Zürich"] == 1
    assert config.label2id["g"] == 9


def test_config_file_wins_over_options(tmp_path, convert, config_file):
    config_file.write_text(json.dumps(official_weights.fields_without_shape("tiny") | {"image_size": 96}))
    assert convert("--image-size", "384") == 0
    assert AutoConfig.from_pretrained(tmp_path / "converted").image_size == 96


def test_reference_and_tolerance_are_handed_on(tmp_path, convert, capsys):
    tensors = {
        "pixel_values": official_weights.pixel_values(2, 64, 64),
        "logits": official_weights.recorded("tiny")["64x64.logits"] * 1.01,
    }
    save_file(tensors, tmp_path / "reference.safetensors")
    with pytest.raises(ConversionError, match="differ from `reference`"):
        convert("--reference", tmp_path / "reference.safetensors")
    assert not (tmp_path / "converted").exists()
    assert convert("--reference", tmp_path / "reference.safetensors", "--tolerance", "0.1") == 0
    assert "relative error 9.90e-03" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["config", "labels"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"], ids=["missing", "not-text"])
def test_unreadable_files_are_named(tmp_path, convert, option, content):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SViTError, match=rf"`{option}` is '.*given\.txt', which cannot be read"):
        convert(f"--{option}", path)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[1]", "holds a list; expected is an object")], ids=["bad", "list"]
)
def test_config_file_has_to_be_a_json_object(convert, config_file, content, message):
    config_file.write_text(content)
    with pytest.raises(SViTError, match=message):
        convert()
