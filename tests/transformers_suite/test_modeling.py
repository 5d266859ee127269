# SPDX-License-Identifier: Apache-2.0
"""Transformers' common suites for models, backbones and configurations, run against SViT.

Tests written out here replace upstream's of the same name, as they do for the pyramids inside Transformers; each says
why.
"""

import copy
import unittest

import torch
from svit_model_tester import SViTModelTester
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.testing_utils import torch_device
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from svit_hf import SViTBackbone, SViTConfig, SViTForImageClassification, SViTModel


class SViTModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SViTModel, SViTForImageClassification, SViTBackbone)
    # resizing is for embeddings of a vocabulary
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = SViTModelTester()

    @staticmethod
    def _prepare_config_headdim(config, requested_dim):
        # for tests on accelerators; upstream's scales `hidden_size`, which cannot be set here
        config = copy.deepcopy(config)
        config.hidden_sizes = [heads * requested_dim for heads in config.num_attention_heads]
        return config

    def outputs_of(self, model_class, config, **arguments):
        model = model_class._from_config(config, attn_implementation="eager").to(torch_device).eval()
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        with torch.no_grad():
            return model(**inputs, **arguments)

    def test_nothing_is_passed_over(self):
        # upstream's tests go on to the next class, without a word, where one of these is missing
        flags = ("supports_gradient_checkpointing", "_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn")
        for model_class in self.all_model_classes:
            for flag in flags:
                with self.subTest(model_class=model_class.__name__, flag=flag):
                    self.assertTrue(getattr(model_class, flag))
        tables = (MODEL_MAPPING_NAMES, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_BACKBONE_MAPPING_NAMES)
        self.assertEqual([table["svit"] for table in tables], [each.__name__ for each in self.all_model_classes])

    def test_attention_outputs(self):
        # upstream's counts hidden layers and compares with one sequence length; a stage here has a grid of its own
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                config = self.model_tester.get_config()
                asked_in_call = self.outputs_of(model_class, config, output_attentions=True)
                config.output_attentions = True
                asked_in_config = self.outputs_of(model_class, config)
                with_hidden_states = self.outputs_of(model_class, config, output_hidden_states=True)
                for outputs in (asked_in_call, asked_in_config, with_hidden_states):
                    shapes = [tuple(attention.shape[1:]) for attention in outputs.attentions]
                    self.assertEqual(shapes, self.model_tester.attention_shapes)
                    for attention in outputs.attentions:
                        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
                self.assertEqual(len(with_hidden_states), len(asked_in_config) + 1)
                self.assertEqual(list(with_hidden_states)[-1], "attentions")

    def test_hidden_states_output(self):
        # upstream's expects (B, N, C)
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                config = self.model_tester.get_config()
                asked_in_call = self.outputs_of(model_class, config, output_hidden_states=True)
                config.output_hidden_states = True
                asked_in_config = self.outputs_of(model_class, config)
                for outputs in (asked_in_call, asked_in_config):
                    shapes = [tuple(state.shape[1:]) for state in outputs.hidden_states]
                    self.assertEqual(shapes, self.model_tester.hidden_state_shapes)

    def test_model_get_set_embeddings(self):
        # upstream's expects an embedding of a vocabulary
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(self.model_tester.get_config())
                self.assertIsInstance(model.get_input_embeddings(), nn.Module)
                self.assertIsNone(model.get_output_embeddings())


class SViTBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SViTBackbone,)
    config_class = SViTConfig

    def setUp(self):
        self.model_tester = SViTModelTester()


class SViTConfigTest(unittest.TestCase):
    def setUp(self):
        # asked for by the check of composite configurations
        self.model_tester = SViTModelTester()

    def test_config(self):
        tester = ConfigTester(
            self,
            config_class=SViTConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers", "image_size"],
            projection_dim=37,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_attention_heads=[1, 2],
            super_token_sizes=[4, 1],
            num_sampling_iterations=[1, 1],
            use_layer_scale=[False, True],
        )
        tester.run_common_tests()
