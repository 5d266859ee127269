# SPDX-License-Identifier: Apache-2.0
"""Both image processors against the official evaluation transform: sizes, batches, errors, saving."""

import io
import json

import numpy as np
import pytest
import torch
from official_evaluation import (
    FLOAT_TOLERANCE,
    LEVEL,
    MEAN,
    STD,
    TOLERANCE,
    assert_close,
    official_transform,
    photo,
    pixel_values,
)
from PIL import Image
from tiny import tiny_config
from torchvision import transforms
from transformers import AutoImageProcessor, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

from svit_hf import SViTForImageClassification, SViTImageProcessor, SViTImageProcessorPil, save_with_code
from svit_hf.model import image_processing_pil_svit, image_processing_svit, image_transforms_svit, own_code_svit


@pytest.fixture(params=[SViTImageProcessor, SViTImageProcessorPil], ids=["torchvision", "pil"])
def processor_class(request):
    return request.param


class TestOneChannel:
    @pytest.fixture
    def processor(self, processor_class):
        return processor_class(size=32, image_mean=[0.5], image_std=[0.25])

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L"])
    def test_pillow_images_become_grey(self, processor, mode):
        picture = Image.fromarray(photo(40, 50)).convert(mode)
        expected = pixel_values(processor, np.asarray(picture.convert("L")))
        assert expected.shape == (1, 1, 32, 32)
        torch.testing.assert_close(pixel_values(processor, picture), expected, rtol=0, atol=0)

    def test_wide_grey_keeps_its_values(self, processor):
        picture = Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16))
        assert pixel_values(processor, picture).min() > 100

    def test_other_numbers_of_channels_are_no_colours(self, processor_class):
        processor = processor_class(size=32, image_mean=[0.5] * 2, image_std=[0.25] * 2)
        with pytest.raises(ValueError, match=r"An image must have 2 channels on .* got shape \(40, 50, 3\)"):
            processor(Image.fromarray(photo(40, 50)))

    def test_pipeline_classifies_pictures_in_colour(self, processor_class, tmp_path):
        save_with_code(SViTForImageClassification(tiny_config(num_channels=1)), tmp_path)
        processor = processor_class.from_pretrained(tmp_path)
        model = SViTForImageClassification.from_pretrained(tmp_path)
        classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
        picture = Image.fromarray(photo(70, 90))
        assert classify(picture) == classify(picture.convert("L"))
        assert len(classify(picture)) == 5


class TestOfficialTransform:
    # 256x259: the crop at 224 starts at 17.5, which is rounded to 18
    @pytest.mark.parametrize("shape", [(60, 90), (91, 60), (256, 259), (224, 224), (33, 517)], ids=str)
    @pytest.mark.parametrize("size", [33, 192, 224, 225, 256])
    def test_equal(self, processor_class, shape, size):
        pixels = photo(*shape)
        expected = official_transform(Image.fromarray(pixels), size)[None]
        for image in (Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
            assert_close(pixel_values(processor_class(size=size), image), expected, TOLERANCE[processor_class])

    def test_equal_by_default(self, processor_class):
        image = Image.fromarray(photo())
        expected = official_transform(image)[None]
        assert_close(pixel_values(processor_class(), image), expected, TOLERANCE[processor_class])

    @pytest.mark.parametrize("shape", [(1, 500), (500, 1)], ids=str)
    def test_equal_on_a_line(self, processor_class, shape):
        pixels = photo(*shape)
        expected = official_transform(Image.fromarray(pixels), 33)[None]
        for image in (Image.fromarray(pixels), pixels):
            assert_close(pixel_values(processor_class(size=33), image), expected, TOLERANCE[processor_class])

    def test_equal_on_other_devices(self, monkeypatch):
        """Where torchvision lacks the 8-bit resampling that it has on the CPU, it resizes floats."""
        geometry = "torchvision.transforms.v2.functional._geometry._do_native_uint8_resize_on_cpu"
        monkeypatch.setattr(geometry, lambda interpolation: False)
        image = Image.fromarray(photo())
        actual = pixel_values(SViTImageProcessor(), image)
        assert_close(actual, official_transform(image)[None], TOLERANCE[SViTImageProcessor])

    @pytest.mark.parametrize("scale", [1, 255])
    @pytest.mark.parametrize("shape", [(60, 90), (33, 517)], ids=str)
    def test_equal_on_floats(self, processor_class, shape, scale):
        pixels = photo(*shape)
        expected = official_transform(Image.fromarray(pixels))[None]
        floats = (pixels / 255 * scale).astype(np.float32)
        for image in (floats, floats.astype(np.float64), torch.from_numpy(floats).permute(2, 0, 1)):
            actual = pixel_values(processor_class(), image, do_rescale=scale == 255)
            assert_close(actual, expected, FLOAT_TOLERANCE)

    def test_equal_on_real_photos(self, processor_class, real_images):
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(real_images / "trashnet6" / "test.parquet", columns=["image"])["image"][
            :8
        ].to_pylist()
        for image in (Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows):
            expected = official_transform(image)[None]
            assert_close(pixel_values(processor_class(), image), expected, TOLERANCE[processor_class])

    @pytest.mark.parametrize("size", [192, 224, 256])
    def test_reference_is_what_torchvision_does_with_pillow_images(self, size):
        official = transforms.Compose([
            transforms.Resize(int(256 / 224 * size) if size <= 224 else size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN.tolist(), STD.tolist()),
        ])  # fmt: skip
        image = Image.fromarray(photo(256, 259))
        assert_close(official_transform(image, size), official(image).numpy(), 1e-6)


class TestBatches:
    @pytest.mark.parametrize("disable_grouping", [False, True])
    def test_stacked_images_do_not_influence_each_other(self, disable_grouping):
        # the ranges differ, 0..1 and 0..255, and decide where the overshoot is cut off
        images = [torch.from_numpy(photo() / np.float32(255)), torch.from_numpy(photo().astype(np.float32))]
        processor = SViTImageProcessor(size=64, disable_grouping=disable_grouping)
        together = pixel_values(processor, images)
        for image, values in zip(images, together, strict=True):
            np.testing.assert_array_equal(pixel_values(processor, image)[0], values)

    @pytest.mark.parametrize("as_batch", [np.stack, lambda images: torch.from_numpy(np.stack(images))])
    def test_batch_in_one_array(self, processor_class, as_batch):
        images = [photo(), photo()[::-1]]
        expected = np.stack([official_transform(Image.fromarray(image)) for image in images])
        assert_close(pixel_values(processor_class(), as_batch(images)), expected, TOLERANCE[processor_class])


class TestSize:
    @pytest.mark.parametrize(
        ("size", "crop_pct", "resized"),
        [(224, None, 256), (192, None, 219), (225, None, 225), (384, None, 384), (384, 1, 384), (90, 0.9, 100)],
    )
    def test_crop_pct_sets_the_margin(self, processor_class, size, crop_pct, resized):
        image = Image.fromarray(photo())
        start = (resized - size) / 2
        scaled = image.resize((int(resized * 1.5), resized), Image.Resampling.BICUBIC)
        left, top = round((int(resized * 1.5) - size) / 2), round(start)
        scaled = scaled.crop((left, top, left + size, top + size))
        expected = ((np.asarray(scaled, dtype=np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
        by_constructor = pixel_values(processor_class(size=size, crop_pct=crop_pct), image)
        assert_close(by_constructor, expected, TOLERANCE[processor_class])
        by_call = pixel_values(processor_class(), image, size={"shortest_edge": size}, crop_pct=crop_pct)
        np.testing.assert_array_equal(by_call, by_constructor)

    @pytest.mark.parametrize(
        ("size", "resized", "box"),
        [
            # 60x90 covers 48/0.8 x 96/0.8 = 60x120 when it is 80x120, and 96/0.8 x 48/0.8 when it is 120x180
            ((48, 96), (80, 120), (16, 12, 64, 108)),
            ((96, 48), (120, 180), (12, 66, 108, 114)),
        ],
        ids=["wide", "high"],
    )
    def test_rectangle(self, processor_class, size, resized, box):
        top, left, bottom, right = box
        image = Image.fromarray(photo()).resize(resized[::-1], Image.Resampling.BICUBIC)
        expected = np.asarray(image.crop((left, top, right, bottom)), dtype=np.float32).transpose(2, 0, 1)[None]
        processor = processor_class(size=size, crop_pct=0.8, do_rescale=False, do_normalize=False)
        assert processor.size == {"height": size[0], "width": size[1]}
        actual = processor(photo(), return_tensors="pt").pixel_values.float().numpy()
        assert_close(actual, expected, TOLERANCE[processor_class] / LEVEL)

    def test_shorter_edge_of_a_rectangle_sets_the_margin(self, processor_class):
        by_rule = pixel_values(processor_class(size=(224, 300)), photo())
        np.testing.assert_array_equal(by_rule, pixel_values(processor_class(size=(224, 300), crop_pct=0.875), photo()))

    def test_crop_size_replaces_the_crop(self, processor_class):
        image = Image.fromarray(photo())
        whole = pixel_values(processor_class(), image, do_center_crop=True, crop_size=(256, 384))
        assert whole.shape == (1, 3, 256, 384)
        np.testing.assert_array_equal(whole[..., 16:240, 80:304], pixel_values(processor_class(), image))

    def test_without_resize_nothing_is_cut(self, processor_class):
        expected = ((photo().astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
        assert_close(pixel_values(processor_class(do_resize=False), photo()), expected, 1e-6)

    def test_crop_beyond_the_image_is_filled_alike(self):
        kwargs = {"do_resize": False, "do_center_crop": True, "crop_size": (71, 80), "do_normalize": False}
        by_torchvision, by_pillow = (
            pixel_values(backend(), photo(), **kwargs) for backend in (SViTImageProcessor, SViTImageProcessorPil)
        )
        assert_close(by_torchvision, by_pillow, 1e-6)
        np.testing.assert_array_equal(by_pillow[0, :, 5:65] * 255, photo().transpose(2, 0, 1)[..., 5:85])


class TestErrors:
    @pytest.mark.parametrize("crop_pct", [0, -0.5, 1.1, float("nan"), "0.9"])
    def test_crop_pct(self, processor_class, crop_pct):
        with pytest.raises(ValueError, match=r"`crop_pct` must be None or a number above 0 and up to 1, got"):
            processor_class(crop_pct=crop_pct)

    def test_crop_pct_of_a_call(self, processor_class):
        with pytest.raises(ValueError, match=r"`crop_pct` must be .* got 1.5"):
            processor_class()(photo(), crop_pct=1.5)

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ({"edge": 224}, "the key 'shortest_edge' or the keys 'height' and 'width', got {'edge': 224}"),
            ({"shortest_edge": 224, "longest_edge": 300}, "the key 'shortest_edge' or the keys 'height' and 'width'"),
            ({"height": 224}, "the key 'shortest_edge' or the keys 'height' and 'width'"),
            ({"shortest_edge": 0}, "in whole pixels, at least 1, got {'shortest_edge': 0}"),
            ({"height": 224, "width": 224.5}, "in whole pixels, at least 1, got {'height': 224, 'width': 224.5}"),
            (-1, "in whole pixels, at least 1, got {'shortest_edge': -1}"),
        ],
        ids=str,
    )
    def test_size(self, processor_class, size, message):
        with pytest.raises(ValueError, match=message):
            processor_class(size=size)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (
                np.zeros((5, 30, 40), np.uint8),
                r"1 or 2 or 3 or 4 channels on its first or last axis, got shape \(5, 30",
            ),
            (np.zeros((3, 0, 40), np.uint8), r"not empty, got shape \(3, 0, 40\)"),
            ([photo(), np.zeros(8, np.uint8)], r"must be \(H, W\), \(C, H, W\) or .* got shape \(8,\)"),
            (np.zeros((3, 8, 8), np.complex64), "booleans, integers or floats, got dtype complex64"),
            (np.full((3, 8, 8), 70000), "within 0 and 65535 to become RGB, got 70000 to 70000"),
            (np.full((3, 8, 8), -1, np.int16), "within 0 and 65535 to become RGB, got -1 to -1"),
            ([], "`images` must hold at least one image"),
        ],
        ids=["channels", "empty", "axes", "complex", "beyond-16-bits", "negative", "no-images"],
    )
    def test_image(self, processor_class, image, message):
        with pytest.raises(ValueError, match=message):
            processor_class()(image)

    def test_image_mean_of_another_length(self, processor_class):
        with pytest.raises(ValueError, match=r"must have 4 channels .* got shape \(60, 90, 3\).*`image_mean`"):
            processor_class(image_mean=[0.5] * 4, image_std=[0.5] * 4)(photo())


class TestSaving:
    @pytest.mark.parametrize("crop_pct", [None, 0.9])
    def test_fields(self, processor_class, tmp_path, crop_pct):
        processor_class(size=192, crop_pct=crop_pct).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert saved == {
            "crop_pct": crop_pct,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "SViTImageProcessor",
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": 192},
        }

    @pytest.mark.parametrize("backend", ["torchvision", "pil", None])
    def test_round_trip(self, processor_class, tmp_path, backend):
        processor_class(size=192, crop_pct=0.9).save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is (SViTImageProcessorPil if backend == "pil" else SViTImageProcessor)
        assert (loaded.size, loaded.crop_pct) == ({"shortest_edge": 192}, 0.9)

    def test_rule_follows_a_new_size(self, processor_class, tmp_path):
        processor_class().save_pretrained(tmp_path)
        image = Image.fromarray(photo())
        loaded = processor_class.from_pretrained(tmp_path, size=256)
        assert_close(pixel_values(loaded, image), official_transform(image, 256)[None], TOLERANCE[processor_class])

    def test_modules_can_be_copied_one_by_one(self):
        shared = {image_transforms_svit.__file__, own_code_svit.__file__}
        assert set(get_relative_import_files(image_processing_pil_svit.__file__)) == shared
        # with torchvision, the processor that does without it comes along
        with_torchvision = set(get_relative_import_files(image_processing_svit.__file__))
        assert with_torchvision == shared | {image_processing_pil_svit.__file__}

    def test_kwargs_class_is_found_by_its_name(self):
        for processor, module in (
            (SViTImageProcessor, image_processing_svit),
            (SViTImageProcessorPil, image_processing_pil_svit),
        ):
            assert vars(module)["SViTImageProcessorKwargs"] is processor.valid_kwargs
