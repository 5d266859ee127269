# SPDX-License-Identifier: Apache-2.0
"""A folder written by `save_with_code` loads where `svit_hf` is missing, and gives what the saved model gave."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import order_frames, tiny_config, tiny_video_config
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import svit_hf.model
from svit_hf import (
    SViTBackbone,
    SViTConfig,
    SViTForImageClassification,
    SViTForVideoClassification,
    SViTImageProcessor,
    SViTImageProcessorPil,
    SViTModel,
    SViTVideoProcessor,
    save_with_code,
)
from svit_hf.hub.probe import compare_with_probe
from svit_hf.model.own_code_svit import code_files


IMAGE_SIZE = 64

REMOTE = """
import json
from importlib.util import find_spec
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, logging, pipeline
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

assert find_spec("svit_hf") is None
logging.disable_progress_bar()
for auto_class in (AutoConfig, AutoModelForImageClassification, AutoImageProcessor):
    try:
        auto_class.from_pretrained("saved", trust_remote_code=False)
    except ValueError as error:
        print(error)

trusted = {"trust_remote_code": True}
config = AutoConfig.from_pretrained("saved", **trusted)
model = AutoModel.from_pretrained("saved", **trusted)
classifier = AutoModelForImageClassification.from_pretrained("saved", **trusted)
built_backbone = AutoBackbone.from_config(config, **trusted)
backbone_class = get_class_from_dynamic_module("modeling_svit.SViTBackbone", "saved")
backbone = backbone_class.from_pretrained("saved", out_features=["stage2", "stage4"])
processors = {
    backend: AutoImageProcessor.from_pretrained("saved", backend=backend, **trusted)
    for backend in ("pil", "torchvision")
}
image = Image.open("image.png")
pixels = {backend: processor(image, return_tensors="pt").pixel_values for backend, processor in processors.items()}
classify = pipeline("image-classification", model="saved", image_processor=processors["pil"], **trusted)
answers = sorted(classify(image), key=lambda answer: answer["label"])

classifier.save_pretrained("again")
processors["pil"].save_pretrained("again")
again = AutoModelForImageClassification.from_pretrained("again", **trusted)
AutoImageProcessor.from_pretrained("again", **trusted)

with torch.no_grad():
    tensors = {f"pixels_{backend}": values for backend, values in pixels.items()}
    tensors |= {
        "last_hidden_state": model(pixels["pil"]).last_hidden_state,
        "logits": classifier(pixels["pil"]).logits,
        "saved_again": again(pixels["pil"]).logits,
        "feature_map": backbone(pixels["pil"]).feature_maps[0],
        "scores": torch.tensor([answer["score"] for answer in answers]),
    }
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "tensors.safetensors")
loaded = [config, model, classifier, built_backbone, backbone, classify.model, again, *processors.values()]
classes = [type(each) for each in loaded]
Path("classes.json").write_text(json.dumps([[each.__module__, each.__name__] for each in classes]))
"""

TRAVELLER = """
import json, sys
from importlib.util import find_spec
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, logging
# not from transformers itself: before 5.18 it has only a placeholder there where torchvision is missing
from transformers.models.auto.image_processing_auto import AutoImageProcessor

assert find_spec("svit_hf") is None
logging.disable_progress_bar()
trusted = {"trust_remote_code": True}
for source, target, *backends in json.loads(sys.argv[1]):
    AutoModel.from_pretrained(source, **trusted)
    model = AutoModelForImageClassification.from_pretrained(source, **trusted)
    model.save_pretrained(target)
    for backend in backends:
        processor = AutoImageProcessor.from_pretrained(source, backend=backend, **trusted)
        assert type(processor).__name__.endswith("Pil") == (backend == "pil")
    # the last one is what a script would have used
    processor.save_pretrained(target)
    for folder in (source, target):
        model = AutoModelForImageClassification.from_pretrained(folder, **trusted)
        pixels = AutoImageProcessor.from_pretrained(folder, **trusted)(Image.open("image.png"), return_tensors="pt")
        with torch.no_grad():
            print(model(**pixels).logits.argmax().item())
"""

VIDEO = """
from importlib.util import find_spec
import numpy as np
import torch
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, logging

assert find_spec("svit_hf") is None
logging.disable_progress_bar()
trusted = {"trust_remote_code": True}
frames = np.load("frames.npy")
for folder in ("saved", "again"):
    assert type(AutoModel.from_pretrained(folder, **trusted)).__name__ == "SViTVideoModel"
    model = AutoModelForVideoClassification.from_pretrained(folder, **trusted)
    processor = AutoVideoProcessor.from_pretrained(folder, **trusted)
    with torch.no_grad():
        print(model(**processor(frames, return_tensors="pt")).logits.tolist())
    model.save_pretrained("again")
    processor.save_pretrained("again")
"""

AUTO_MAP_FILES = {"model": "config.json", "config": "config.json", "processor": "preprocessor_config.json"}

# the files that an `auto_map` names
ASKED_FOR = [
    "configuration_svit",
    "configuration_video_svit",
    "image_processing_pil_svit",
    "image_processing_svit",
    "modeling_svit",
    "modeling_video_svit",
    "video_processing_svit",
]

REMOTE_CLASSES = [
    "SViTConfig",
    "SViTModel",
    "SViTForImageClassification",
    "SViTBackbone",
    "SViTBackbone",
    "SViTForImageClassification",
    "SViTForImageClassification",
    "SViTImageProcessorPil",
    "SViTImageProcessor",
]


@pytest.fixture
def classifier():
    model = SViTForImageClassification(tiny_config(image_size=IMAGE_SIZE)).eval()
    with torch.no_grad():
        # statistics as after training: a copy that lost a buffer shall be noticed
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def picture():
    pixels = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.slow
def test_everything_loads_where_the_package_is_missing(classifier, picture, fresh_python, tmp_path):
    save_with_code(classifier, tmp_path / "saved")
    picture.save(tmp_path / "image.png")
    # every process gets a cache of its own, so that no module of an earlier one is found
    printed = fresh_python(
        "-W", "error", "-c", REMOTE, hidden=["svit_hf"], environment={"HF_MODULES_CACHE": str(tmp_path / "modules")}
    )
    assert printed.count("trust_remote_code=True") == 3

    modules, names = zip(*json.loads((tmp_path / "classes.json").read_text()), strict=True)
    assert list(names) == REMOTE_CLASSES
    assert all(module.startswith("transformers_modules.") for module in modules)

    pil, torchvision = (
        processor(size={"shortest_edge": IMAGE_SIZE})(picture, return_tensors="pt").pixel_values
        for processor in (SViTImageProcessorPil, SViTImageProcessor)
    )
    with torch.no_grad():
        outputs = classifier.svit(pil, output_hidden_states=True)
        logits = classifier(pil).logits
    expected = {
        "pixels_pil": pil,
        "pixels_torchvision": torchvision,
        "last_hidden_state": outputs.last_hidden_state,
        "logits": logits,
        "saved_again": logits,
        "feature_map": outputs.hidden_states[2],
        "scores": logits[0].softmax(-1),
    }
    torch.testing.assert_close(load_file(tmp_path / "tensors.safetensors"), expected)


@pytest.mark.slow
def test_code_travels_from_folder_to_folder(classifier, picture, fresh_python, tmp_path):
    picture.save(tmp_path / "image.png")
    save_with_code(classifier, tmp_path / "saved")
    # the classes of the package, which save what was loaded with its code
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    arguments = TrainingArguments(tmp_path / "run", report_to=[], use_cpu=True)
    expected = []
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend=backend)
        Trainer(loaded, arguments, processing_class=processor).save_model(tmp_path / f"by_package_{backend}")
        with torch.no_grad():
            logits = classifier(processor(picture, return_tensors="pt").pixel_values).logits
        expected += [f"{logits.argmax().item()}\n"] * 2
    first = [
        ("by_package_torchvision", "by_remote_code_torchvision", "pil", "torchvision"),
        ("by_package_pil", "by_remote_code_pil", "torchvision", "pil"),
    ]
    second = [(target, f"again_{backend}", "pil") for _, target, _, backend in first]
    for journeys, hidden in ((first, ()), (second, ("torchvision",))):
        printed = fresh_python(
            *("-c", TRAVELLER, json.dumps(journeys)),
            hidden=["svit_hf", *hidden],
            environment={"HF_MODULES_CACHE": str(tmp_path / "modules")},
        )
        assert printed == "".join(expected)


@pytest.mark.parametrize("processor_class", [SViTImageProcessor, SViTImageProcessorPil])
def test_each_part_brings_the_code_when_the_package_saves_it_again(classifier, tmp_path, processor_class):
    save_with_code(classifier, tmp_path / "saved")
    SViTBackbone.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "model")
    SViTConfig.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "config")
    processor_class.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "processor")
    names = {path.name for path in (tmp_path / "saved").glob("*.py")}
    assert {"modeling_svit.py", "image_processing_svit.py", "image_processing_pil_svit.py"} <= names
    for part, file in AUTO_MAP_FILES.items():
        assert {path.name for path in (tmp_path / part).glob("*.py")} == names
        saved, again = (json.loads((tmp_path / each / file).read_text()) for each in ("saved", part))
        assert again["auto_map"] == saved["auto_map"]


@pytest.mark.parametrize("model_class", [SViTModel, SViTForImageClassification, SViTBackbone])
def test_folder_holds_the_model_code_and_serves_every_auto_class(model_class, tmp_path):
    save_with_code(model_class(tiny_config()), tmp_path)
    code = {path.name: path.read_bytes() for path in Path(svit_hf.model.__path__[0]).glob("*.py")}
    del code["__init__.py"]
    assert all(name.endswith("_svit.py") for name in code)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("**/*.py")} == code

    auto_maps = {
        **json.loads((tmp_path / "config.json").read_text())["auto_map"],
        **json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"],
    }
    assert set(auto_maps) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoBackbone",
        "AutoImageProcessor",
    }
    for reference in [*auto_maps.pop("AutoImageProcessor").values(), *auto_maps.values()]:
        module, name = reference.split(".")
        assert f"class {name}(" in code[f"{module}.py"].decode()


def test_every_file_that_is_asked_for_names_all_that_it_needs():
    # older versions of Transformers copy direct imports alone
    for module in ASKED_FOR:
        file = Path(svit_hf.model.__path__[0], f"{module}.py")
        needed = {Path(path).stem for path in get_relative_import_files(file)} - {module}
        assert set(get_relative_imports(file)) == needed


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [(64, {"shortest_edge": 64}), ([64, 96], {"height": 64, "width": 96})],
    ids=["square", "rectangle"],
)
def test_default_image_processor_has_the_size_of_the_model(tmp_path, image_size, expected):
    save_with_code(SViTModel(tiny_config(image_size=image_size)), tmp_path)
    assert dict(SViTImageProcessorPil.from_pretrained(tmp_path).size) == expected


def test_saving_leaves_model_and_processor_as_they_are(classifier, tmp_path):
    processor = SViTImageProcessorPil()
    save_with_code(classifier, tmp_path / "with", processor)
    classifier.save_pretrained(tmp_path / "without")
    processor.save_pretrained(tmp_path / "without")
    names = {path.name for path in (tmp_path / "without").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in (tmp_path / "without" / name).read_text()


def test_folder_stays_as_it_was_if_saving_fails(classifier, tmp_path):
    save_with_code(classifier, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        classifier.classifier.bias.add_(1)

    class Failing(SViTImageProcessorPil):
        def to_json_file(self, path):
            raise OSError("cannot be written")

    with pytest.raises(OSError, match="cannot be written"):
        save_with_code(classifier, tmp_path, Failing())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_in_more_files_replace_those_in_one(classifier, tmp_path, monkeypatch):
    save_with_code(classifier, tmp_path)
    with torch.no_grad():
        classifier.classifier.bias.add_(1)
    monkeypatch.setattr(classifier, "save_pretrained", partial(classifier.save_pretrained, max_shard_size="20KB"))
    save_with_code(classifier, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = SViTForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.classifier.bias, classifier.classifier.bias)


def test_given_image_processor_is_saved(classifier, tmp_path):
    save_with_code(classifier, tmp_path, SViTImageProcessorPil(image_mean=[0.25, 0.5, 0.75]))
    assert list(SViTImageProcessorPil.from_pretrained(tmp_path).image_mean) == [0.25, 0.5, 0.75]


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`model` is a Linear; expected is an SViT model"):
        save_with_code(nn.Linear(1, 1), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def video_model():
    return order_frames(SViTForVideoClassification(tiny_video_config())).eval()


@pytest.mark.slow
def test_video_model_loads_where_the_package_is_missing(video_model, fresh_python, tmp_path):
    save_with_code(video_model, tmp_path / "saved")
    frames = np.random.default_rng(0).integers(0, 256, (8, 70, 90, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    printed = fresh_python(
        "-c", VIDEO, hidden=["svit_hf"], environment={"HF_MODULES_CACHE": str(tmp_path / "modules")}
    )
    clip = SViTImageProcessor(size={"shortest_edge": IMAGE_SIZE})(list(frames[::2]), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = video_model(clip).logits
    for line in printed.splitlines():
        torch.testing.assert_close(torch.tensor(json.loads(line)), logits)
    assert len(printed.splitlines()) == 2


def test_folder_of_a_video_model_serves_its_auto_classes(video_model, tmp_path):
    save_with_code(video_model, tmp_path / "saved")
    assert compare_with_probe(video_model, tmp_path / "saved") == 0
    assert len(load_file(tmp_path / "saved" / "probe.safetensors")["pixel_values"]) == 3
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "saved")
    assert (type(processor), processor.num_frames, dict(processor.size)) == (
        SViTVideoProcessor,
        video_model.config.num_frames,
        {"shortest_edge": IMAGE_SIZE},
    )
    processor.save_pretrained(tmp_path / "again")
    AutoModelForVideoClassification.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {path.name for path in code_files()}
    for file in ("config.json", "video_preprocessor_config.json"):
        saved, again = (json.loads((tmp_path / each / file).read_text()) for each in ("saved", "again"))
        assert again["auto_map"] == saved["auto_map"]
        for reference in saved["auto_map"].values():
            module, name = reference.split(".")
            assert f"class {name}(" in (tmp_path / "again" / f"{module}.py").read_text()
