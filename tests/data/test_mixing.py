# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from svit_hf.data import augmentation
from svit_hf.data.mixing import mix_batch
from svit_hf.data.options import MixingOptions
from svit_hf.errors import SViTError


IMAGES = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16)
LABELS = torch.tensor([0, 2, 4, 1])


def mix(options, update=0, seed=0):
    return mix_batch(IMAGES.clone(), LABELS, options, num_classes=5, seed=seed, update=update)


@pytest.mark.parametrize("options", [MixingOptions(0.8, 0), MixingOptions(0, 1.0), MixingOptions()], ids=str)
def test_target_has_the_share_of_each_image(options):
    for update in range(10):
        pixels, targets = mix(options, update)
        assert targets.shape == (4, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        for place, before in enumerate((3, 0, 1, 2)):
            # the mean pixel tells the share of the image before it
            share = float((pixels[place].mean() - place) / (before - place))
            assert targets[place, LABELS[before]] == pytest.approx(share, abs=1e-5)


def test_mixup_mixes_all_pixels_and_cutmix_a_rectangle():
    assert mix(MixingOptions(0.8, 0))[0][1].unique().numel() == 1
    assert set(mix(MixingOptions(0, 1.0), update=1)[0][1].unique().tolist()) == {0.0, 1.0}


def test_mixing_follows_from_seed_and_update():
    torch.manual_seed(1)
    first = mix(MixingOptions())
    torch.manual_seed(2)
    assert all(map(torch.equal, mix(MixingOptions()), first))
    assert not torch.equal(mix(MixingOptions(), update=1)[1], first[1])
    assert not torch.equal(mix(MixingOptions(), seed=1)[1], first[1])


def test_switch_probability_is_the_share_of_cutmix():
    options = MixingOptions(switch_probability=0.25)
    num_cutmix = sum(mix(options, update)[0][1].unique().numel() == 2 for update in range(200))
    assert 25 < num_cutmix < 75


def test_mixing_may_be_off_and_then_needs_no_torchvision(monkeypatch):
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    pixels, targets = mix(MixingOptions(0, 0))
    assert torch.equal(pixels, IMAGES)
    assert torch.equal(targets.argmax(1), LABELS)
    with pytest.raises(SViTError, match="needs torchvision"):
        mix(MixingOptions())
