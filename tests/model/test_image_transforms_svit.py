# SPDX-License-Identifier: Apache-2.0
"""How pictures of every kind become pixels, in both image processors."""

import base64
import io

import numpy as np
import pytest
import torch
from official_evaluation import (
    FLOAT_TOLERANCE,
    TOLERANCE,
    assert_close,
    official_transform,
    photo,
    pixel_values,
)
from PIL import Image

from svit_hf import SViTImageProcessor, SViTImageProcessorPil
from svit_hf.model import image_transforms_svit


GREY = photo()[..., 0]
RGBA = np.concatenate([photo(), photo()[::-1, :, :1]], axis=-1)
# every high byte with a low byte of its own, so that neither cutting off nor dropping bytes gets it right
GREY_16_BIT = GREY.astype(np.uint16) * 255 + np.arange(GREY.size, dtype=np.uint16).reshape(GREY.shape) % 256


def palette_with_transparency():
    image = Image.fromarray(photo()).quantize(16)
    image.info["transparency"] = bytes(range(16))
    return image


def rotated_by_exif():
    """Return the picture as a camera held sideways stores it, through a file."""
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(photo()).transpose(Image.Transpose.ROTATE_90).save(file, "png", exif=exif)
    return Image.open(file)


# what is given, and the RGB picture that it shows
KINDS = {
    "grey": (Image.fromarray(GREY), Image.fromarray(GREY)),
    "grey-alpha": (Image.fromarray(RGBA[..., [0, 3]]), Image.fromarray(GREY)),
    "rgba": (Image.fromarray(RGBA), Image.fromarray(photo())),
    "palette": (Image.fromarray(photo()).quantize(16), Image.fromarray(photo()).quantize(16)),
    "palette-transparency": (palette_with_transparency(), Image.fromarray(photo()).quantize(16)),
    "cmyk": (Image.fromarray(RGBA, "CMYK"), Image.fromarray(RGBA, "CMYK")),
    "ycbcr": (Image.fromarray(photo(), "YCbCr"), Image.fromarray(photo(), "YCbCr")),
    "bilevel": (Image.fromarray(GREY > 100), Image.fromarray((GREY > 100).astype(np.uint8) * 255)),
    "I;16": (Image.fromarray(GREY_16_BIT), Image.fromarray((GREY_16_BIT / 257).round().astype(np.uint8))),
    "I-of-16-bits": (
        Image.fromarray(GREY_16_BIT.astype(np.int32)),
        Image.fromarray((GREY_16_BIT / 257).round().astype(np.uint8)),
    ),
    "I-of-8-bits": (Image.fromarray(GREY.astype(np.int32)), Image.fromarray(GREY)),
    "exif": (rotated_by_exif(), Image.fromarray(photo())),
    "array-HW": (GREY, Image.fromarray(GREY)),
    "array-1HW": (GREY[None], Image.fromarray(GREY)),
    "array-HW1": (GREY[..., None], Image.fromarray(GREY)),
    "array-CHW": (photo().transpose(2, 0, 1), Image.fromarray(photo())),
    "array-HW2": (RGBA[..., [0, 3]], Image.fromarray(GREY)),
    "array-HW4": (RGBA, Image.fromarray(photo())),
    "array-bool": (GREY > 100, Image.fromarray((GREY > 100).astype(np.uint8) * 255)),
    "array-int64": (photo().astype(np.int64), Image.fromarray(photo())),
    "array-uint16": (GREY_16_BIT, Image.fromarray((GREY_16_BIT / 257).round().astype(np.uint8))),
    "array-dark-uint16": (np.full((60, 90), 255, np.uint16), Image.new("L", (90, 60), 1)),
    "tensor-HW": (torch.from_numpy(GREY), Image.fromarray(GREY)),
    "tensor-HWC": (torch.from_numpy(photo()), Image.fromarray(photo())),
    "tensor-4HW": (torch.from_numpy(RGBA).permute(2, 0, 1), Image.fromarray(photo())),
    "tensor-int32": (torch.from_numpy(photo()).int(), Image.fromarray(photo())),
    "tensor-uint16": (torch.from_numpy(GREY_16_BIT), Image.fromarray((GREY_16_BIT / 257).round().astype(np.uint8))),
}


@pytest.fixture(params=[SViTImageProcessor, SViTImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


class TestKindsOfImages:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equal(self, processor_class, kind):
        image, shown = KINDS[kind]
        expected = official_transform(shown.convert("RGB"))[None]
        assert_close(pixel_values(processor_class(), image), expected, TOLERANCE[processor_class])

    @pytest.mark.parametrize("scale", [1, 255])
    def test_equal_on_float_grey_pillow_image(self, processor_class, scale):
        expected = official_transform(Image.fromarray(GREY).convert("RGB"))[None]
        image = Image.fromarray((GREY / 255 * scale).astype(np.float32))
        assert image.mode == "F"
        assert_close(pixel_values(processor_class(), image, do_rescale=scale == 255), expected, FLOAT_TOLERANCE)

    # all of them hold whole numbers up to 256 exactly
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_equal_on_float_tensor_with_gradient(self, processor_class, dtype):
        image = torch.from_numpy(photo()).to(dtype).requires_grad_()
        actual = processor_class()(image, return_tensors="pt").pixel_values.detach().numpy()
        assert_close(actual, official_transform(Image.fromarray(photo()))[None], FLOAT_TOLERANCE)

    @pytest.mark.parametrize("value", [0, 255])
    def test_black_and_white_stay_so(self, processor_class, value):
        image = Image.new("RGB", (90, 60), (value,) * 3)
        assert_close(pixel_values(processor_class(), image), official_transform(image)[None], 1e-6)

    def test_file_is_read_as_the_image_would_be(self, processor_class, tmp_path):
        path = tmp_path / "sideways-16-bit.png"
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(GREY_16_BIT).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        expected = official_transform(KINDS["I;16"][1].convert("RGB"))[None]
        for image in (path, str(path)):
            assert_close(pixel_values(processor_class(), image), expected, TOLERANCE[processor_class])

    def test_base64_is_read(self, processor_class):
        file = io.BytesIO()
        Image.fromarray(photo()).save(file, "png")
        actual = pixel_values(processor_class(), base64.b64encode(file.getvalue()).decode())
        assert_close(actual, official_transform(Image.fromarray(photo()))[None], TOLERANCE[processor_class])

    def test_input_data_format_decides(self, processor_class):
        # by its shape, (H, W, C) as well as (C, H, W)
        pixels = photo(3, 3)
        pixels[..., 2] = 200
        expected = official_transform(Image.fromarray(pixels), 33)[None]
        for image, input_data_format in (
            (pixels, "channels_last"),
            (pixels.transpose(2, 0, 1), "channels_first"),
            (pixels.transpose(2, 0, 1), None),
            (Image.fromarray(pixels), None),
        ):
            actual = pixel_values(processor_class(size=33), image, input_data_format=input_data_format)
            assert_close(actual, expected, TOLERANCE[processor_class])
        expected = official_transform(Image.fromarray(GREY).convert("RGB"), 33)[None]
        actual = pixel_values(processor_class(size=33), GREY, input_data_format="channels_last")
        assert_close(actual, expected, TOLERANCE[processor_class])

    def test_the_image_given_is_not_changed(self, processor_class):
        floats = torch.rand(3, 256, 256) * 255
        pixels = photo(256, 256)
        pixels.flags.writeable = False
        before = floats.clone()
        pixel_values(processor_class(), [floats, pixels])
        assert torch.equal(floats, before)

    def test_mixed_batch_is_each_alone(self, processor_class):
        processor = processor_class(size=64)
        images = [image for image, _ in KINDS.values()] + [photo(33, 517), photo(91, 60).astype(np.float32)]
        together = pixel_values(processor, images)
        assert len(together) == len(images)
        for image, values in zip(images, together, strict=True):
            np.testing.assert_array_equal(pixel_values(processor, image)[0], values)


class TestFloats:
    @pytest.fixture
    def warnings(self, monkeypatch):
        messages = []
        monkeypatch.setattr(image_transforms_svit.logger, "warning_once", messages.append)
        return messages

    def test_scaled_twice_is_warned_about(self, processor_class, warnings):
        pixel_values(processor_class(size=8), photo().astype(np.float32) / 255)
        assert len(warnings) == 1
        assert "do_rescale=False" in warnings[0]

    @pytest.mark.parametrize(
        ("image", "kwargs"),
        [
            (photo().astype(np.float32), {}),
            (photo().astype(np.float32) / 255, {"do_rescale": False}),
            (photo().astype(np.float32) / 255, {"rescale_factor": 1.0}),
            (photo() // 255, {}),
            (np.zeros((8, 8, 3), np.float32), {}),
        ],
        ids=["0..255", "not-rescaled", "own-factor", "integers", "black"],
    )
    def test_no_false_warning(self, processor_class, warnings, image, kwargs):
        pixel_values(processor_class(size=8), image, **kwargs)
        assert not warnings

    def test_other_ranges_are_not_cut_off(self, processor_class):
        values = photo().astype(np.float32) * 20 - 1000
        bands = [
            Image.fromarray(band).resize((54, 36), Image.Resampling.BICUBIC) for band in values.transpose(2, 0, 1)
        ]
        expected = np.stack([np.asarray(band.crop((11, 2, 43, 34))) for band in bands])[None]
        actual = pixel_values(processor_class(size=32), values, do_rescale=False, do_normalize=False)
        assert expected.min() < values.min()
        # of a range of 5100, in float32; worst case measured: 2.5e-6
        assert_close(actual, expected, 5100 * 5e-6)


class TestOtherChannels:
    @pytest.mark.parametrize("do_convert_rgb", [False, True])
    @pytest.mark.parametrize("channels", [1, 2, 4, 5])
    def test_image_mean_sets_the_number(self, processor_class, channels, do_convert_rgb):
        pixels = np.random.default_rng(0).integers(0, 256, (channels, 60, 90), dtype=np.uint8)
        processor = processor_class(
            size=64, do_convert_rgb=do_convert_rgb, image_mean=[0.5] * channels, image_std=[0.25] * channels
        )
        reference = processor_class(size=64, image_mean=[0.5] * 3, image_std=[0.25] * 3)
        expected = np.concatenate([pixel_values(reference, band)[:, :1] for band in pixels], axis=1)
        for image in (pixels, pixels.transpose(1, 2, 0), torch.from_numpy(pixels)):
            np.testing.assert_array_equal(pixel_values(processor, image), expected)

    def test_grey_pillow_image_stays_grey(self, processor_class):
        processor = processor_class(size=64, do_convert_rgb=False, image_mean=[0.485], image_std=[0.229])
        expected = official_transform(Image.fromarray(GREY).convert("RGB"), 64)[None, :1]
        assert_close(pixel_values(processor, Image.fromarray(GREY)), expected, TOLERANCE[processor_class])

    def test_values_stay_as_stored(self, processor_class):
        processor = processor_class(
            do_resize=False, do_convert_rgb=False, image_mean=[0.5], image_std=[0.25], rescale_factor=1 / 65535
        )
        expected = ((GREY_16_BIT / 65535 - 0.5) / 0.25).astype(np.float32)[None, None]
        for image in (GREY_16_BIT, Image.fromarray(GREY_16_BIT), torch.from_numpy(GREY_16_BIT)):
            assert_close(pixel_values(processor, image), expected, 1e-6)

    def test_any_number_without_normalization(self, processor_class):
        pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 12), dtype=np.uint8)
        processor = processor_class(size=64, do_convert_rgb=False, do_normalize=False)
        assert pixel_values(processor, pixels, input_data_format="channels_last").shape == (1, 12, 64, 64)
