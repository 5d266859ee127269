# SPDX-License-Identifier: Apache-2.0
"""Transformers' common suite for pipelines, run with SViT.

The suite loads a tiny model, makes the pipeline and calls it in batches; what it checks of a single pipeline comes
from files that the source distribution lacks, so the two classes for that are written here.
"""

import math
import unittest
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from svit_model_tester import SViTModelTester
from transformers import ImageClassificationPipeline, ImageFeatureExtractionPipeline
from transformers_tests import test_pipeline_mixin
from transformers_tests.test_pipeline_mixin import PipelineTesterMixin

from svit_hf import SViTForImageClassification, SViTImageProcessor, SViTImageProcessorPil, SViTModel


def pictures() -> list[Image.Image]:
    """Return pictures of different sizes and modes, among them those that have to be made RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    return [colour.convert("RGB"), colour, colour.convert("L").resize((64, 48)), *map(colour.convert, ["LA", "P"])]


class ImageClassificationPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32"):
        pipeline = ImageClassificationPipeline(model=model, image_processor=image_processor, dtype=dtype)
        return pipeline, pictures()

    def run_pipeline_test(self, pipeline, examples):
        labels = set(pipeline.model.config.id2label.values())
        for result in [pipeline(examples[0], top_k=99), *pipeline(examples, top_k=99)]:
            self.assertEqual({entry["label"] for entry in result}, labels)
            scores = [entry["score"] for entry in result]
            self.assertEqual(scores, sorted(scores, reverse=True))
            self.assertTrue(math.isclose(sum(scores), 1.0, abs_tol=1e-3))
        self.assertEqual([len(result) for result in pipeline(examples, top_k=1)], [1] * len(examples))


class ImageFeatureExtractionPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32"):
        pipeline = ImageFeatureExtractionPipeline(model=model, image_processor=image_processor, dtype=dtype)
        return pipeline, pictures()

    def run_pipeline_test(self, pipeline, examples):
        config = pipeline.model.config
        self.assertEqual(np.shape(pipeline(examples[0])), (1, config.hidden_sizes[-1], 2, 2))
        self.assertEqual(np.shape(pipeline(examples[0], pool=True)), (1, config.projection_dim))
        features = pipeline(examples, pool=True, return_tensors=True)
        self.assertEqual(len(features), len(examples))
        for feature in features:
            self.assertTrue(feature.isfinite().all())


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory):
    """Save the models that the suite asks the Hub for, and name the classes above as the tests of their pipelines."""
    folder = tmp_path_factory.mktemp("tiny-models")
    processors = [SViTImageProcessor, SViTImageProcessorPil]
    summary = {}
    for model_class in (SViTModel, SViTForImageClassification):
        # where the suite looks: model type, then class
        target = folder / "svit" / model_class.__name__
        model_class(SViTModelTester().get_config()).save_pretrained(target)
        SViTImageProcessor(size={"shortest_edge": 32}).save_pretrained(target)
        names = [processor.__name__ for processor in processors]
        summary[model_class.__name__] = {"tokenizer_classes": [], "processor_classes": names}
    mapping = test_pipeline_mixin.pipeline_test_mapping
    tests = {
        "image-classification": ImageClassificationPipelineTests,
        "image-feature-extraction": ImageFeatureExtractionPipelineTests,
    }
    with (
        mock.patch.object(test_pipeline_mixin, "TRANSFORMERS_TINY_MODEL_PATH", str(folder)),
        mock.patch.object(test_pipeline_mixin, "tiny_model_summary", summary),
        mock.patch.dict(mapping, {task: {"test": _as_in(mapping[task], test)} for task, test in tests.items()}),
    ):
        yield


class SViTPipelineTest(PipelineTesterMixin, unittest.TestCase):
    model_tester = SViTModelTester()
    pipeline_model_mapping = {
        "image-classification": SViTForImageClassification,
        "image-feature-extraction": SViTModel,
    }

    # upstream's ask for timm, which nothing in them uses for a model that is no timm model
    def test_pipeline_image_feature_extraction(self):
        self.run_task_tests(task="image-feature-extraction")

    def test_pipeline_image_feature_extraction_fp16(self):
        self.run_task_tests(task="image-feature-extraction", dtype="float16")


def _as_in(entry: dict[str, Any], test: type) -> type | str:
    """Name a class as the mapping does: by its path since 5.23, by itself before."""
    return f"{test.__module__}.{test.__name__}" if isinstance(entry["test"], str) else test
