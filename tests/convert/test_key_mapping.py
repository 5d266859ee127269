# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden import official_weights

from svit_hf import SViTForImageClassification
from svit_hf.convert import infer_config
from svit_hf.convert.key_mapping import is_dropped, official_shape, to_official, to_ours


PAIRS = {
    "patch_embed.proj.9.weight": "svit.embeddings.layers.3.convolution.weight",
    "patch_embed.proj.11.running_var": "svit.embeddings.layers.3.batch_norm.running_var",
    "layers.2.blocks.13.attn.stoken_refine.qkv.bias": "svit.stages.2.layers.13.attention.self_attention.qkv.bias",
    "layers.3.blocks.0.gamma_2": "svit.stages.3.layers.0.layer_scale2.scale",
    "layers.0.downsample.proj.1.num_batches_tracked": "svit.stages.1.downsampling.batch_norm.num_batches_tracked",
    "norm.weight": "svit.pooler.batch_norm.weight",
    "head.bias": "classifier.bias",
}


@pytest.mark.parametrize(("official_key", "our_key"), PAIRS.items(), ids=list(PAIRS))
def test_names_are_known_in_both_directions(official_key, our_key):
    assert to_ours(official_key) == our_key
    assert to_official(our_key) == official_key


@pytest.mark.parametrize("name", official_weights.LAYOUTS)
def test_table_covers_every_tensor_of_both_sides_once(name):
    official = {
        key: torch.empty(shape, device="meta") for key, shape in official_weights.LAYOUTS[name]["state_dict"].items()
    }
    config = infer_config(official, config=official_weights.fields_without_shape(name))
    with torch.device("meta"):
        ours = SViTForImageClassification(config).state_dict()
    kept = {key: tuple(value.shape) for key, value in official.items() if not is_dropped(key)}
    assert {to_official(key): official_shape(key, tuple(value.shape)) for key, value in ours.items()} == kept
    assert {to_ours(key) for key in kept} == ours.keys()


def test_nothing_but_the_one_hot_kernels_is_dropped():
    dropped = {key for key in official_weights.LAYOUTS["tiny"]["state_dict"] if is_dropped(key)}
    assert dropped == {
        f"layers.{stage}.blocks.{layer}.attn.{name}.weights"
        for stage, layer in [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
        for name in ("fold", "unfold")
    }


@pytest.mark.parametrize(
    "key",
    [
        "patch_embed.proj.1.weight",
        "layers.00.blocks.0.gamma_1",
        "layers.0.blocks.0.attn.fold.bias",
        "layers.0.blocks.0.attn.fold.weights",
        "module.head.weight",
        "head.weight.extra",
        "classifier.weight",
    ],
)
def test_other_names_are_unknown(key):
    assert to_ours(key) is None


@pytest.mark.parametrize("key", ["svit.stages.0.downsampling.convolution.weight", "head.weight", "svit.stages"])
def test_names_that_are_not_ours_are_unknown(key):
    assert to_official(key) is None


def test_unknown_tensors_are_not_dropped():
    assert not is_dropped("layers.0.blocks.0.attn.fold.weights.extra")
    assert not is_dropped("attn.fold.weights")
