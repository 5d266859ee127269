# SPDX-License-Identifier: Apache-2.0
"""Transformers' common suite for image processors, run against both of SViT's backends."""

import unittest
from typing import Any

from transformers_tests.test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs

from svit_hf import SViTImageProcessor, SViTImageProcessorPil


class SViTImageProcessingTester:
    """Make arguments and pictures, as the `ImageProcessingTester` of a model inside Transformers does."""

    batch_size = 4
    num_channels = 3
    min_resolution = 30
    max_resolution = 120
    crop_size = {"height": 18, "width": 20}

    # by name: upstream's finds them through the name of the folder that the test file is in
    image_processing_classes = {"torchvision": SViTImageProcessor, "pil": SViTImageProcessorPil}

    def __init__(self, parent: Any = None):
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        """Return arguments that all differ from their defaults, apart from those that switch a step on."""
        return {
            "do_resize": True,
            "size": {"height": 22, "width": 24},
            "crop_pct": 0.8,
            "do_center_crop": True,
            "crop_size": self.crop_size,
            "do_normalize": True,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.3, 0.4],
            # the suite also feeds four channels, and expects as many back
            "do_convert_rgb": False,
        }

    def prepare_image_inputs(self, **kwargs: Any) -> list[Any]:
        """Return random pictures; upstream's function names the kinds."""
        sizes = {"min_resolution": self.min_resolution, "max_resolution": self.max_resolution}
        return prepare_image_inputs(
            **({"batch_size": self.batch_size, "num_channels": self.num_channels} | sizes | kwargs)
        )

    def prepare_processor_inputs(self, **kwargs: Any) -> dict[str, Any]:
        """Return what to call a processor with."""
        return {"images": self.prepare_image_inputs(**kwargs)}

    def expected_output_image_shape(self, images: list[Any]) -> tuple[int, int, int]:
        """Return `(C, height, width)` of every picture that is processed."""
        return self.num_channels, self.crop_size["height"], self.crop_size["width"]


class SViTImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    # without it `test_cast_dtype_device` passes without having looked at anything
    test_cast_dtype = True
    image_processor_tester_class = SViTImageProcessingTester
    image_processing_classes = SViTImageProcessingTester.image_processing_classes

    def setUp(self):
        self.image_processor_tester = SViTImageProcessingTester(self)

    @property
    def image_processor_dict(self) -> dict[str, Any]:
        return self.image_processor_tester.prepare_image_processor_dict()
