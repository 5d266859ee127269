# SPDX-License-Identifier: Apache-2.0
import sys
from types import ModuleType

import pytest
import torch
from scripts.benchmark import networks
from scripts.benchmark.networks import PEERS, count_macs, peer_network, svit_network
from tiny import tiny_config

from svit_hf import SViTForImageClassification
from svit_hf.benchmark.forms import logits_of
from svit_hf.benchmark.measuring import made_up_images
from svit_hf.errors import SViTError


# parameters in millions with 1000 classes, as the authors publish them; hiera's and pvt's to one digit
PUBLISHED = {"swin-t": 28.3, "convnext-t": 28.6, "pvt-v2-b2": 25.4, "dinov3-convnext-t": 28.6, "hiera-t": 27.9}


@pytest.mark.parametrize("name", PEERS)
def test_peer_has_the_published_size(name):
    with torch.device("meta"):
        model = peer_network(name).build(224)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_peer_runs(name):
    model = peer_network(name).build(224).eval()
    with torch.inference_mode():
        assert logits_of(model(made_up_images(1, 224))).shape == (1, 1000)


def test_macs_are_counted_without_touching_the_model():
    model = SViTForImageClassification(tiny_config()).train()
    # four times the tokens: convolutions four times, attention among all tokens more
    small, large = count_macs(model, 64), count_macs(model, 128)
    assert small > 0
    assert 4 < large / small < 8
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_macs_of_what_needs_data_are_unknown():
    class NeedsData(torch.nn.Module):
        def forward(self, images):
            return images * float(images.sum())

    assert count_macs(NeedsData(), 32) is None


def test_norms_of_layouts_are_not_the_identity(monkeypatch):
    monkeypatch.setattr(networks.SViTConfig, "small", classmethod(lambda cls, **kwargs: tiny_config(**kwargs)))
    model = svit_network("small").build(64)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert min(float(norm.running_mean.abs().max()) for norm in norms) > 0
    assert min(float((norm.weight.detach() - 1).abs().max()) for norm in norms) > 0
    assert {norm.momentum for norm in norms} == {0.1}


def test_folder_keeps_its_weights_and_takes_other_cells(tmp_path):
    model = SViTForImageClassification(tiny_config())
    model.save_pretrained(tmp_path / "saved")
    network = svit_network(str(tmp_path / "saved"), [8, 4, 2, 1])
    assert network.name == "saved cells 8 4 2 1"
    loaded = network.build(64)
    assert loaded.config.super_token_sizes == network.config.super_token_sizes == [8, 4, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(SViTError, match=r"`model` is 'tiny', neither one of small, base, large nor a folder"):
        svit_network("tiny")
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(SViTError, match=r"`peers` has 'swin-s'; .* and models of timm where it is there"):
        peer_network("swin-s")


def test_timm_is_asked_where_it_is_installed(monkeypatch):
    timm = ModuleType("timm")
    timm.is_model = lambda name: name == "resnet18"

    def create_model(name, num_classes, **kwargs):
        if kwargs:
            raise TypeError("unexpected img_size")
        return torch.nn.Linear(num_classes, 1)

    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setattr(networks, "find_spec", lambda name: timm)
    network = peer_network("resnet18")
    assert network.name == "timm resnet18"
    assert network.build(224).in_features == 1000
    with pytest.raises(SViTError, match=r"`timm\.list_models\(\)`"):
        peer_network("resnet19")
