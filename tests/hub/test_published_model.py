# SPDX-License-Identifier: Apache-2.0
"""A model that `svit-hf push` published loads from the Hub as everybody loads it, with this package and without."""

import json
import re

import pytest
import torch
from PIL import Image

from svit_hf import SViTForImageClassification, SViTImageProcessorPil


REPO = "someone/svit-pets"

PUSH_AND_LOAD = f"""
from svit_hf.cli import main
assert main(["push", "run", "{REPO}", "--no-dry-run"]) == 0
import svit_hf
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("{REPO}")
assert type(model) is svit_hf.SViTForImageClassification
"""
# after the three lines of the card; the last one is the answer
TELL = """
print(type(classify.model).__module__)
import json
print(json.dumps(classify("picture.png")))
"""


@pytest.mark.slow
def test_lines_of_the_card_work_with_and_without_the_package(hub, run_folder, fresh_python, tmp_path):
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 100).convert("RGB").save(tmp_path / "picture.png")
    model = SViTForImageClassification.from_pretrained(run_folder / "model").eval()
    pixels = SViTImageProcessorPil.from_pretrained(run_folder / "model")(
        Image.open(tmp_path / "picture.png"), return_tensors="pt"
    )
    with torch.no_grad():
        scores = model(**pixels).logits[0].softmax(-1)
    expected = {model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}

    def run(code, **arguments):
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "a token",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "cache"),
        }
        return fresh_python("-c", code, environment=environment, **arguments).splitlines()

    printed = run(PUSH_AND_LOAD)
    assert f"pushed and read back: {hub.endpoint}/{REPO} (private)" in "\n".join(printed)
    card = hub.repositories[REPO].contents()["README.md"].decode()
    (lines,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    for beginning, hidden, module in (
        ("import svit_hf\n", (), "svit_hf.model.modeling_svit"),
        ("", ("svit_hf",), "transformers_modules."),
    ):
        *_, loaded_from, answers = run(beginning + lines + TELL, hidden=hidden)
        assert loaded_from.startswith(module)
        found = {answer["label"]: answer["score"] for answer in json.loads(answers)}
        assert found == pytest.approx(expected, abs=1e-5)
