# SPDX-License-Identifier: Apache-2.0
"""What upstream's test files need to run outside of their repository: every adaptation, each with its reason.

`import_upstream` is called once, before a test file is imported; the context managers hold while tests run. Overridden
tests are not here but in the test classes, beside their reasons.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import transformers
from transformers.models.auto import modeling_auto

import svit_hf


PACKAGE = "transformers_tests"

# a value other than the default for every argument that all configurations share
CONFIG_COMMON_ARGUMENTS = {
    "architectures": ["SViTModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "cat", 1: "dog", 2: "bird"},
    "is_encoder_decoder": True,
    "label2id": {"cat": 0, "dog": 1, "bird": 2},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}

# tests take their classes out of these tables by model type and by class name, and know nothing of `register`: without
# our names the tests of labels, losses, training and gradient checkpointing pass without having run
STATIC_TABLES = {
    "MODEL_MAPPING_NAMES": "SViTModel",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": "SViTBackbone",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "SViTForImageClassification",
}


class _NotDistributed(types.ModuleType):
    """A test module that the source distribution leaves out; every name in it is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _NotDistributedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find what is imported out of the folders that the source distribution leaves out.

    The common test files import from them base classes with further tests (exporters), a class to compare with
    (generation), and the tests of all pipelines, of which ours are in `test_pipelines.py`.
    """

    folders = ("exporters", "generation", "pipelines")

    def find_spec(self, fullname, path=None, target=None):
        package, _, rest = fullname.partition(".")
        if package == PACKAGE and rest.split(".")[0] in self.folders:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _NotDistributed(spec.name)

    def exec_module(self, module):
        pass


def import_upstream(image: Path) -> None:
    """Import the common test files, with stand-ins for what they import and the source distribution lacks.

    Args:
        image: Picture that stands in for those that upstream's tests load from the Hub.
    """
    # behind the ordinary finders: only what is truly missing is replaced
    sys.meta_path.append(_NotDistributedFinder())
    _add_module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_ARGUMENTS)
    _add_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(image))
    with (
        # it would import a second copy of the library out of a source tree that is not there
        mock.patch("transformers.utils.direct_transformers_import", return_value=transformers),
        _tiny_model_folder(),
    ):
        importlib.import_module(f"{PACKAGE}.test_configuration_common")
        pipeline_mixin = importlib.import_module(f"{PACKAGE}.test_pipeline_mixin")
    image_processing = importlib.import_module(f"{PACKAGE}.test_image_processing_common")
    if hasattr(image_processing, "httpx"):
        # earlier versions fetch that picture from the web by themselves
        response = types.SimpleNamespace(content=image.read_bytes())
        image_processing.httpx = types.SimpleNamespace(get=lambda url, **kwargs: response)
    # image processors are looked up there by name, and only ours are asked for
    pipeline_mixin.transformers_module = svit_hf
    importlib.import_module(f"{PACKAGE}.test_modeling_common")


@contextlib.contextmanager
def names_in_static_tables() -> Iterator[None]:
    """Add our classes to the static tables of the Auto classes."""
    with contextlib.ExitStack() as stack:
        for table, class_name in STATIC_TABLES.items():
            stack.enter_context(mock.patch.dict(getattr(modeling_auto, table), {"svit": class_name}))
        yield


def _add_module(name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


@contextlib.contextmanager
def _tiny_model_folder() -> Iterator[None]:
    """Give the pipeline mixin the list of tiny models it reads at import; `test_pipelines.py` sets the real one."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder, "reports", "tiny_model_summary.json")
        summary.parent.mkdir()
        summary.write_text(json.dumps({}), encoding="utf-8")
        with mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=folder):
            yield
