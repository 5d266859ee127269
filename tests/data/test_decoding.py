# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from picture_data import encoded, picture
from PIL import Image

from svit_hf.data.decoding import BadImage, BadImageTally, DecodingError, ImageLimits, decode_image
from svit_hf.errors import DataError


def grey(values, dtype):
    return Image.fromarray(np.array(values, dtype=dtype))


@pytest.mark.parametrize(
    ("data", "pixel"),
    [
        (encoded(Image.new("L", (4, 3), 77), "PNG"), (77, 77, 77)),
        (encoded(grey(np.full((3, 4), 257 * 77), np.uint16), "PNG"), (77, 77, 77)),
        (encoded(grey(np.full((3, 4), 257 * 77), np.uint16), "TIFF"), (77, 77, 77)),
        (encoded(grey(np.full((3, 4), 16 * 255), np.uint16), "PNG"), (16, 16, 16)),
        (encoded(Image.new("1", (4, 3), 1), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (4, 3), (10, 20, 30, 0)), "PNG"), (10, 20, 30)),
        (encoded(Image.new("RGB", (4, 3), (10, 20, 30)).quantize(4), "PNG"), (10, 20, 30)),
        (encoded(Image.new("RGB", (4, 3), (10, 20, 30)).quantize(4), "PNG", transparency=b"\0"), (10, 20, 30)),
        (encoded(Image.new("CMYK", (4, 3), (255, 0, 255, 0)), "TIFF"), (0, 255, 0)),
        (encoded(Image.new("CMYK", (4, 3), (255, 0, 255, 0)), "JPEG"), (0, 255, 0)),
    ],
    ids=[
        "grey",
        "grey-16-bit",
        "grey-16-bit-tiff",
        "grey-12-of-16-bit",
        "bilevel",
        "alpha",
        "palette",
        "palette-alpha",
        "cmyk",
        "cmyk-jpeg",
    ],
)
def test_every_mode_becomes_rgb(data, pixel):
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (4, 3))
    np.testing.assert_allclose(image.getpixel((1, 1)), pixel, atol=2)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    turned = decode_image(encoded(image, "PNG", exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0II*\0\0\0\0\xff"])
def test_broken_exif_data_is_ignored(exif):
    image = decode_image(encoded(Image.new("RGB", (4, 2), (10, 200, 30)), "JPEG", exif=exif))
    assert image.size == (4, 2)


def test_failing_exif_transposition_is_ignored(monkeypatch):
    def fail(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    assert decode_image(picture(5)).getpixel((0, 0))[0] == 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no bytes"),
        (b"", "no bytes"),
        (b"not a picture", "it is no picture"),
        (picture(1)[:40], "."),
        (picture(1, "JPEG", size=(64, 64))[:-200], "runcated"),
        ("/nowhere/picture.png", "FileNotFoundError"),
        (encoded(grey(np.full((3, 4), 0.5), np.float32), "TIFF"), "grey in floating point"),
        (encoded(grey(np.full((3, 4), np.nan), np.float32), "TIFF"), "grey in floating point"),
        (encoded(grey(np.full((3, 4), 200), np.int32), "TIFF"), "grey in 32-bit integers"),
        # would start another program
        (encoded(Image.new("RGB", (4, 3)), "EPS"), "in a format that is not decoded here"),
        (encoded(Image.new("RGB", (4, 3)), "PDF"), "in a format that is not decoded here"),
    ],
    ids=[
        *("none", "empty", "text", "half-header", "half-jpeg", "no-file"),
        *("float", "nan", "int32", "postscript", "pdf"),
    ],
)
def test_broken_picture_has_a_reason(data, reason):
    with pytest.raises(DecodingError, match=reason):
        decode_image(data)


def test_pictures_beyond_the_limits_are_not_decoded():
    large = encoded(Image.new("L", (300, 200)), "PNG")
    assert decode_image(large, ImageLimits(max_pixels=60_000)).size == (300, 200)
    with pytest.raises(DecodingError, match="300x200 pixels; `max_image_pixels` allows 59999"):
        decode_image(large, ImageLimits(max_pixels=59_999))
    with pytest.raises(DecodingError, match=f"{len(large)} bytes; `max_image_bytes` allows 10"):
        decode_image(large, ImageLimits(max_bytes=10))
    # half a megabyte that would be half a gigabyte
    with pytest.raises(DecodingError, match=r"`max_image_pixels` allows|exceeds limit"):
        decode_image(encoded(Image.new("1", (13_000, 13_000)), "PNG"))


def test_run_goes_on_with_few_broken_images():
    tally = BadImageTally(max_bad_share=0.01)
    # far above the share, but nine say nothing yet
    tally.add(10, 9)
    # ten of a thousand is the share
    tally.add(990, 1)
    assert (tally.num_images, tally.num_bad) == (1000, 10)


def test_run_stops_with_the_list():
    tally = BadImageTally(max_bad_share=0.01)
    tally.note([BadImage(number, "train.parquet", number, "half") for number in range(50)])
    with pytest.raises(DataError, match=r"50 of 1000 images could not be decoded, a share of 5\.00%") as caught:
        tally.add(1000, 50)
    assert caught.value.exit_code == 3
    assert "  train.parquet, row 19: half" in str(caught.value)
    assert "row 20" not in str(caught.value)
