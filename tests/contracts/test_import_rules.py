# SPDX-License-Identifier: Apache-2.0
"""What a file of `svit_hf.model` may import, by Transformers' own rules for code on the Hub, and what importing costs.

The Hub loader finds relative imports with a regular expression and joins what it finds to the folder's name; every
absolute import becomes a requirement. Who imports whom inside the package is import-linter's part (pyproject.toml).
"""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


MODEL_FILES = sorted((Path(__file__).parents[2] / "src" / "svit_hf" / "model").glob("**/*.py"))

ALLOWED = {"torch", "transformers", "huggingface_hub"}
# image processors handle images as Transformers does; torchvision is there wherever the torchvision backend is used
ALLOWED_FOR_IMAGES = ALLOWED | {"numpy", "PIL", "torchvision"}

# not in it: accelerate and torchvision, which transformers itself loads where they are installed
OPTIONAL = {"datasets", "evaluate", "gradio", "matplotlib", "sklearn", "timm", "triton"}


def per_file(test):
    return pytest.mark.parametrize("path", MODEL_FILES, ids=[path.name for path in MODEL_FILES])(test)


def test_model_folder_is_flat_and_not_empty():
    assert {"configuration_svit.py", "modeling_svit.py"} <= {path.name for path in MODEL_FILES}
    assert len({path.parent for path in MODEL_FILES}) == 1


@per_file
def test_relative_imports_are_sibling_files(path):
    # also finds a docstring's line that looks like an import
    for name in get_relative_imports(path):
        assert path.with_name(f"{name}.py").is_file(), f"the Hub loader would look for {name}.py"


@per_file
def test_hub_loader_sees_every_relative_import(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    # `from . import x` is not seen at all, `from ..a import x` is taken for a file named .a.py
    assert {node.module for node in imports if node.level} == set(get_relative_imports(path))
    assert {node.level for node in imports} <= {0, 1}


@per_file
def test_absolute_imports_are_allowed(path):
    allowed = ALLOWED_FOR_IMAGES if path.name.startswith("image_") else ALLOWED
    assert set(get_imports(path)) - sys.stdlib_module_names <= allowed


@per_file
def test_config_validation_is_not_switched_off(path):
    # postponed annotations silently disable the type checks of strict dataclasses
    assert "__future__" not in get_imports(path)


def test_import_is_light_and_quiet_and_twice_is_harmless(fresh_python):
    code = """
import importlib, sys
# torch loads triton for this, transformers 5.5 scikit-learn for the other; 5.23 does not
import torch._dynamo
from transformers import AutoConfig, AutoModelForImageClassification
before = set(sys.modules)
import svit_hf
print(*(sys.modules.keys() - before))
svit_hf.SViTImageProcessorPil()
svit_hf.SViTImageProcessor()
heads = [name for name in sys.modules if "dense_heads" in name or "svit_hf.tasks" in name]
assert not heads, heads
assert callable(svit_hf.build_model) and callable(svit_hf.load_backbone)

importlib.reload(svit_hf)
# as after an interrupted import in a notebook: the classes are made, and registered, anew
for name in [name for name in sys.modules if name.partition(".")[0] == "svit_hf"]:
    del sys.modules[name]
import svit_hf
assert type(AutoConfig.for_model("svit")) is svit_hf.SViTConfig
"""
    loaded = {name.partition(".")[0] for name in fresh_python("-W", "error", "-c", code).split()}
    assert "svit_hf" in loaded
    assert not loaded & OPTIONAL


@pytest.fixture
def broken_torchvision(tmp_path):
    """Install a torchvision that was built for another torch, in the first place where Python looks."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")


def test_broken_torchvision_warns_once_and_is_not_used(broken_torchvision, fresh_python):
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    # as users do: Transformers has asked for torchvision before this package is imported
    from transformers import AutoConfig, AutoModelForImageClassification
    import svit_hf
about = [warning for warning in caught if "torchvision" in str(warning.message)]
print(len(about), about[0].message)
# not from transformers itself, see svit_hf/__init__.py
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers import pipeline
from PIL import Image
layout = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
model = AutoModelForImageClassification.from_config(AutoConfig.for_model("svit", image_size=64, **layout))
svit_hf.save_with_code(model, "saved")
print(type(AutoImageProcessor.from_pretrained("saved")).__name__)
print(len(pipeline("image-classification", model="saved")(Image.new("RGB", (80, 64)), top_k=1)))
try:
    svit_hf.SViTImageProcessor
except ImportError as error:
    print(error)
"""
    # the working directory, which comes first on the path of `-c`, is where the broken one is
    first, *lines = fresh_python("-c", code).splitlines()
    assert first.startswith("1 the installed torchvision cannot be imported")
    assert "operator torchvision::nms does not exist" in first
    assert "pip uninstall torchvision" in first
    assert lines[:2] == ["SViTImageProcessorPil", "1"]
    assert "needs torchvision, which cannot be imported" in lines[2]


def test_program_starts_beside_a_broken_torchvision(broken_torchvision, fresh_python):
    code = """
import sys
from svit_hf_program import main
for arguments in (["--version"], ["--help"], ["doctor"]):
    sys.argv[1:] = arguments
    print("STATUS", main())
"""
    printed = fresh_python("-c", code)
    assert [line for line in printed.splitlines() if line.startswith("STATUS")] == ["STATUS 0", "STATUS 0", "STATUS 1"]
    assert "cannot be imported: RuntimeError: operator torchvision::nms does not exist" in printed
    assert "import svit_hf      works" in printed
