# SPDX-License-Identifier: Apache-2.0
"""`import svit_hf` is all that Auto classes and pipelines need, in a process that knows nothing else of it."""

import json

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config

from svit_hf import (
    SViTBackbone,
    SViTConfig,
    SViTForImageClassification,
    SViTImageProcessor,
    SViTImageProcessorPil,
    SViTModel,
)


# all that is printed, warnings and log messages too, comes to standard output
LOAD = """
import sys
sys.stderr = sys.stdout
import json
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, logging, pipeline
)

logging.disable_progress_bar()
errors = []
for auto_class in (AutoConfig, AutoModelForImageClassification):
    try:
        auto_class.from_pretrained("classifier")
    except ValueError as error:
        errors.append(str(error))

import svit_hf

config = AutoConfig.from_pretrained("base")
model = AutoModel.from_pretrained("base")
classifier = AutoModelForImageClassification.from_pretrained("classifier")
config.out_features = ["stage2", "stage4"]
backbone = AutoBackbone.from_config(config)
backbone.load_state_dict(model.state_dict(prefix="svit."), strict=False)
image = Image.open("image.png")
processors = {"explicit": svit_hf.SViTImageProcessorPil.from_pretrained("base")}
if not getattr(AutoImageProcessor, "is_dummy", False):
    processors["auto"] = AutoImageProcessor.from_pretrained("base")
processor = list(processors.values())[-1]
pixels = processor(image, return_tensors="pt").pixel_values
with torch.no_grad():
    tensors = {
        "last_hidden_state": model(pixels).last_hidden_state,
        "logits": classifier(pixels).logits,
        "feature_map": backbone.eval()(pixels).feature_maps[-1],
    }
given = {} if "auto" in processors else {"image_processor": processor}
classify = pipeline("image-classification", model="classifier", **given)
tensors["scores"] = torch.tensor([answer["score"] for answer in sorted(classify(image), key=lambda a: a["label"])])
extract = pipeline("image-feature-extraction", model="base", **given)
tensors["features"] = torch.tensor(extract(image, pool=False))
tensors["pooled_features"] = torch.tensor(extract(image, pool=True))
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "tensors.safetensors")
loaded = [config, model, classifier, backbone, classify.model, extract.model, *processors.values()]
loaded.append(classify.image_processor)
classes = [f"{type(each).__module__}.{type(each).__name__}" for each in loaded]
Path("report.json").write_text(json.dumps({"errors": errors, "classes": classes}))
"""


@pytest.fixture
def saved(tmp_path):
    """Save a classifier and its base model, each with an image processor, and a picture; return the classifier."""
    model = SViTForImageClassification(tiny_config()).eval()
    # each is loaded as the other one too: where there is no torchvision, and where there is
    for name, part, processor in (
        ("classifier", model, SViTImageProcessor),
        ("base", model.svit, SViTImageProcessorPil),
    ):
        part.save_pretrained(tmp_path / name)
        processor(size={"shortest_edge": 64}).save_pretrained(tmp_path / name)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), ("torchvision",)], ids=["with-torchvision", "without-torchvision"])
def test_auto_classes_and_pipelines_in_a_fresh_process(saved, fresh_python, tmp_path, hidden):
    printed = fresh_python("-W", "error", "-c", LOAD, hidden=hidden)
    assert printed == ""
    chosen = SViTImageProcessorPil if hidden else SViTImageProcessor
    classes = [SViTConfig, SViTModel, SViTForImageClassification, SViTBackbone, SViTForImageClassification, SViTModel]
    classes.append(SViTImageProcessorPil)
    # before 5.18 AutoImageProcessor is a placeholder where torchvision is missing
    if not hidden or version.parse(transformers.__version__) >= version.parse("5.18"):
        classes.append(chosen)
    classes.append(chosen)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["classes"] == [f"{each.__module__}.{each.__name__}" for each in classes]
    # without the import it was a clear error
    assert ["model type `svit`" in error for error in report["errors"]] == [True, True]

    pixels = chosen.from_pretrained(tmp_path / "base")(Image.open(tmp_path / "image.png"), return_tensors="pt")
    with torch.no_grad():
        base = saved.svit(**pixels)
        logits = saved(**pixels).logits
    expected = {
        "last_hidden_state": base.last_hidden_state,
        "logits": logits,
        "feature_map": base.last_hidden_state,
        "scores": logits[0].softmax(-1),
        "features": base.last_hidden_state,
        "pooled_features": base.pooler_output,
    }
    torch.testing.assert_close(load_file(tmp_path / "tensors.safetensors"), expected)
