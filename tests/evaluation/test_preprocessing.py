# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from official_evaluation import official_transform, photo
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from svit_hf import SViTImageProcessorPil
from svit_hf.errors import SViTError
from svit_hf.evaluation.preprocessing import Preprocessing


PICTURE = Image.fromarray(photo(90, 120))


@pytest.mark.parametrize("size", [96, 224, 288])
def test_size_follows_the_official_rule(size):
    prepared = Preprocessing(SViTImageProcessorPil(), (size, size))(PICTURE)
    np.testing.assert_allclose(prepared.numpy(), official_transform(PICTURE, size), atol=1e-6)


def test_crop_share_wins_over_the_rule():
    ruled, whole = (Preprocessing(SViTImageProcessorPil(), (96, 96), crop) for crop in (None, 1.0))
    assert not torch.equal(ruled(PICTURE), whole(PICTURE))
    expected = SViTImageProcessorPil(size={"shortest_edge": 96}, crop_pct=1.0)(PICTURE, return_tensors="pt")
    assert torch.equal(whole(PICTURE), expected["pixel_values"][0])


@pytest.mark.parametrize(
    ("processor", "shape"),
    [
        (SViTImageProcessorPil(), (3, 224, 224)),
        (ConvNextImageProcessorPil(), (3, 384, 384)),
        (DeiTImageProcessorPil(), (3, 224, 224)),
        (ViTImageProcessorPil(), (3, 224, 224)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_own_size_is_the_default(processor, shape):
    preprocessing = Preprocessing(processor)
    assert preprocessing.shape == tuple(preprocessing(PICTURE).shape) == shape
    assert Preprocessing(processor, (96, 96)).shape == (3, 96, 96)


@pytest.mark.parametrize("processor", [SViTImageProcessorPil(), DeiTImageProcessorPil(), ViTImageProcessorPil()])
def test_size_may_be_a_rectangle(processor):
    assert Preprocessing(processor, (64, 96)).shape == (3, 64, 96)


def test_margin_around_a_crop_stays_in_proportion():
    # 256 around 224
    assert Preprocessing(DeiTImageProcessorPil(), (112, 112)).arguments == {
        "size": {"height": 128, "width": 128},
        "crop_size": {"height": 112, "width": 112},
    }
    by_edge = DeiTImageProcessorPil(size={"shortest_edge": 256})
    assert Preprocessing(by_edge, (112, 56), 1.0).arguments == {
        "size": {"shortest_edge": 112},
        "crop_size": {"height": 112, "width": 56},
    }


def test_what_a_processor_cannot_do_is_refused():
    with pytest.raises(SViTError, match=r"`crop_pct` is 0\.9, but ViTImageProcessorPil does not crop"):
        Preprocessing(ViTImageProcessorPil(), crop_pct=0.9)
    with pytest.raises(SViTError, match=r"ConvNextImageProcessorPil does not work with .*'height': 64"):
        Preprocessing(ConvNextImageProcessorPil(), (64, 96))
    with pytest.raises(SViTError, match=r"SViTImageProcessorPil does not work with .*`crop_pct` must be"):
        Preprocessing(SViTImageProcessorPil(), crop_pct=2.0)


def test_images_of_different_sizes_are_refused():
    processor = DeiTImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False)
    with pytest.raises(SViTError, match="images of different sizes"):
        Preprocessing(processor)
