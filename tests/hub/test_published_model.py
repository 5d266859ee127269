# SPDX-License-Identifier: Apache-2.0
"""The lines of the card load what `svit-hf push` publishes, with this package and without."""

import json
import re

import pytest
import torch
from PIL import Image

from svit_hf import SViTForImageClassification, SViTImageProcessorPil
from svit_hf.hub.publication import prepare_publication


REPO = "someone/svit-pets"
# after the three lines of the card; the last one is the answer
TELL = """
print(type(classify.model).__module__)
import json
print(json.dumps(classify("picture.png")))
"""


@pytest.mark.slow
def test_lines_of_the_card_work_with_and_without_the_package(run_folder, fresh_python, tmp_path, monkeypatch, capsys):
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 100).convert("RGB").save(tmp_path / "picture.png")
    model = SViTForImageClassification.from_pretrained(run_folder / "model").eval()
    pixels = SViTImageProcessorPil.from_pretrained(run_folder / "model")(
        Image.open(tmp_path / "picture.png"), return_tensors="pt"
    )
    with torch.no_grad():
        scores = model(**pixels).logits[0].softmax(-1)
    expected = {model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}
    # a folder that is called as the repository is loaded in its place
    published = tmp_path / REPO
    published.mkdir(parents=True)
    publication = prepare_publication(run_folder, REPO)
    for file in publication.files:
        with file.as_file() as content:
            (published / file.path_in_repo).write_bytes(content.read())
    (lines,) = re.findall(r"^```python\n(.*?)^```", publication.card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(lines + TELL, {})
    with_package = capsys.readouterr().out
    without = fresh_python("-c", lines + TELL, hidden=["svit_hf"])
    for printed, module in ((with_package, "svit_hf.model.modeling_svit"), (without, "transformers_modules.")):
        *_, loaded_from, answers = printed.splitlines()
        assert loaded_from.startswith(module)
        found = {answer["label"]: answer["score"] for answer in json.loads(answers)}
        assert found == pytest.approx(expected, abs=1e-5)
