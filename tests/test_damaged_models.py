# SPDX-License-Identifier: Apache-2.0
"""Damaged model folders: every command that loads one ends with a message, or works, and never with a traceback."""

import json
import random
import shutil

import pytest
from evaluation_data import make_classifier, picture

from svit_hf import cli, save_with_code
from svit_hf.hub.model_card import CardText, build_model_card
from svit_hf.hub.probe import write_probe


NUM_MUTATIONS = 120
NAMES = ["cat", "dog"]
ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2.5,
    -0.0,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    [],
    [0],
    [1, 2],
    {},
    {"a": 1},
]
CARD = CardText("svit", "svit", "Summary.", "Data.", "command", {}, [], "Limits.", "Provenance.")
COMMANDS = ("predict", "evaluate", "doctor", "push")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Make a whole model with code, card and probe, and pictures with labels."""
    folder = tmp_path_factory.mktemp("damaged")
    model = make_classifier(folder / "plain", names=NAMES)
    save_with_code(model, folder / "model")
    write_probe(model, folder / "model")
    build_model_card(model, CARD).save(folder / "model/README.md")
    for number in range(4):
        file = folder / "data/val" / NAMES[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    return folder


def damage(content, draw):
    """Return bytes in which something was overwritten, removed, added or repeated."""
    kind = draw.choice(["flip", "cut", "remove", "insert", "zero", "repeat", "empty"])
    place = draw.randrange(len(content))
    length = draw.choice([1, 8, 64, 4096])
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
    return {
        "cut": content[:place],
        "remove": content[:place] + content[place + length :],
        "insert": content[:place] + draw.randbytes(length) + content[place:],
        "zero": content[:place] + bytes(len(content[place : place + length])) + content[place + length :],
        "repeat": content[: place + length] + content[place:],
        "empty": b"",
    }[kind]


def damage_json(content, draw):
    """Return JSON in which a value is another one, is gone, or that is something else altogether."""
    if draw.random() < 0.1:
        return json.dumps(draw.choice(ODD_VALUES)).encode()
    values = json.loads(content)
    key = draw.choice(sorted(values))
    inside = values[key]
    if draw.random() < 0.2:
        del values[key]
    elif isinstance(inside, list) and inside and draw.random() < 0.5:
        inside[draw.randrange(len(inside))] = draw.choice(ODD_VALUES)
    elif isinstance(inside, dict) and inside and draw.random() < 0.5:
        inside[draw.choice(sorted(inside))] = draw.choice(ODD_VALUES)
    else:
        values[key] = draw.choice(ODD_VALUES)
    return json.dumps(values).encode()


def damage_header(content, draw):
    """Return weights whose header is damaged, and has the right length all the same."""
    size = int.from_bytes(content[:8], "little")
    header = damage_json(content[8 : 8 + size], draw) if draw.random() < 0.7 else damage(content[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def damage_folder(folder, draw):
    """Damage one file, and say which."""
    path = folder / draw.choice(["model.safetensors", "config.json", "preprocessor_config.json"])
    ways = [damage, damage_header if path.suffix == ".safetensors" else damage_json]
    path.write_bytes(draw.choice(ways)(path.read_bytes(), draw))
    return path.name


def arguments_of(command, model, whole):
    return {
        "predict": [str(model), str(whole / "data/val/cat/0.png"), "--data.num-workers", "0"],
        "evaluate": [str(model), "--data.path", str(whole / "data"), "--data.num-workers", "0"],
        "doctor": [str(model)],
        "push": [str(model), "someone/svit"],
    }[command]


# what Pillow and NumPy say about absurd settings of an image processor, torch about weights of no element
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_damaged_folder_is_a_message(whole, tmp_path, capsys):
    draw = random.Random(0)
    outcomes = []
    for number in range(NUM_MUTATIONS):
        model = shutil.copytree(whole / "model", tmp_path / "model")
        name = damage_folder(model, draw)
        command = COMMANDS[number % len(COMMANDS)]
        try:
            status = cli.main([command, *arguments_of(command, model, whole)])
        except Exception as error:
            raise AssertionError(f"mutation {number}: {command} with a damaged {name}") from error
        printed = capsys.readouterr()
        assert status in ({0, 1} if command == "doctor" else {0, 2, 3}), (number, printed)
        assert "Traceback" not in printed.err
        assert status == 0 or "broken: " in printed.out or printed.err.count("svit-hf: ") == 1
        outcomes.append((command, status != 0))
        shutil.rmtree(model)
    # the mutations are neither harmless nor all fatal, for any command
    for command in COMMANDS:
        assert {is_refused for name, is_refused in outcomes if name == command} == {False, True}


@pytest.mark.parametrize("command", COMMANDS)
def test_whole_folder_is_no_message(whole, command):
    assert cli.main([command, *arguments_of(command, whole / "model", whole)]) == 0
