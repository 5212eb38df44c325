"""Decoding: every kind of image there is on the web, and every kind of damage."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools.dataset.pictures import DecodeError, read_jpeg_header
from pipeline.data.samples.decode import decode_rgb
from tests.pipeline.data.images import encode, psnr, synthetic_photo

PHOTO = synthetic_photo(0, 160, 120)


def saved(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg"])
def test_formats_give_rgb(suffix):
    image = decode_rgb(encode(PHOTO, suffix))
    assert image.dtype == np.uint8 and image.shape == PHOTO.shape
    assert psnr(image, PHOTO) > (30 if suffix in (".jpg", ".webp") else 90)


def test_jpeg_pixels_are_those_of_pillow():
    data = encode(PHOTO)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_rgb(data).astype(int) - reference).max() <= 3


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_cmyk_is_converted(options):
    data = saved(Image.fromarray(PHOTO).convert("CMYK"), quality=95, **options)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert psnr(decode_rgb(data), reference) > 30


def test_grey_and_sixteen_bits_and_alpha_and_palette():
    grey = PHOTO[..., 0].copy()
    for data in (encode(grey, ".jpg"), encode(grey, ".png")):
        image = decode_rgb(data)
        assert image.shape == PHOTO.shape
        assert np.array_equal(image[..., 0], image[..., 2])
    wide = (grey.astype(np.uint16) << 8) | grey
    assert np.abs(decode_rgb(encode(wide, ".png"))[..., 1].astype(int) - grey).max() <= 1
    transparent = Image.fromarray(np.dstack([PHOTO, np.full_like(grey, 7)]), "RGBA")
    assert np.array_equal(decode_rgb(saved(transparent, "PNG")), PHOTO)
    palette = Image.fromarray(PHOTO).convert("P")
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode_rgb(saved(palette, "PNG")), expected)


def test_one_pixel():
    assert decode_rgb(encode(PHOTO[:1, :1], ".png")).shape == (1, 1, 3)
    assert decode_rgb(encode(PHOTO[:1, :1], ".jpg")).shape == (1, 1, 3)


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(PHOTO), quality=95, exif=exif)
    assert psnr(decode_rgb(data), np.rot90(PHOTO, turns)) > 30
    reduced = decode_rgb(data, lambda width, height: 2)
    assert reduced.shape[:2] == ((80, 60) if turns % 2 else (60, 80))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_reduced_decode_is_a_smaller_image(scale):
    photo = synthetic_photo(1, 640, 480)
    image = decode_rgb(encode(photo), lambda width, height: scale)
    assert image.shape == (480 // scale, 640 // scale, 3)
    reference = Image.fromarray(photo).reduce(scale)
    assert psnr(image, np.asarray(reference)) > 30


def test_reduction_is_asked_with_the_stored_size():
    asked = []

    def full_size(width, height):
        asked.append((width, height))
        return 1

    decode_rgb(encode(PHOTO), full_size)
    assert asked == [(160, 120)]


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.booleans())
@settings(max_examples=30)
def test_header_reads_the_size(width, height, progressive, grey):
    image = Image.new("L" if grey else "RGB", (width, height), 90)
    header = read_jpeg_header(
        saved(image, progressive=progressive, comment=b"\xff\xc0 not a frame")
    )
    assert header is not None and (header.width, header.height) == (width, height)


def test_other_formats_have_no_jpeg_header():
    assert read_jpeg_header(encode(PHOTO, ".png")) is None
    assert read_jpeg_header(b"") is None


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "zero bytes"),
        (b"\x00" * 1000, "not an image"),
        (b"<html>404</html>", "not an image"),
        (encode(PHOTO)[:20], "ends within its header"),
        (b"\xff\xd8" + b"\x00" * 100, "no marker"),
        (encode(PHOTO)[:-700], "cut short"),
        (encode(PHOTO, ".png")[:40], "not an image|OpenCV"),
    ],
)
def test_damage_is_told(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_rgb(data)


def test_cut_jpeg_with_a_thumbnail_is_told():
    """The thumbnail's own end marker lies before the scan and must not stand in for the image's."""
    thumbnail = encode(PHOTO[::8, ::8])
    data = encode(PHOTO)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    whole = data[:2] + segment + data[2:]
    assert decode_rgb(whole).shape == PHOTO.shape
    with pytest.raises(DecodeError, match="cut short"):
        decode_rgb(whole[:-500])


def test_bytes_after_the_end_are_borne():
    assert decode_rgb(encode(PHOTO) + b"\x00" * 3000).shape == PHOTO.shape


def test_a_gigapixel_claim_is_refused_before_decoding():
    data = bytearray(encode(PHOTO))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(DecodeError, match="60000 x 60000"):
        decode_rgb(bytes(data))


@given(st.data())
@settings(max_examples=300)
def test_flipped_bytes_never_do_more_than_fail(data):
    """An image or a DecodeError: whatever the bytes, no other exception and no crash."""
    suffix = data.draw(st.sampled_from([".jpg", ".png", ".webp"]))
    damaged = bytearray(ENCODED[suffix])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_rgb(bytes(damaged), lambda width, height: 2)
    except DecodeError:
        return
    assert image.ndim == 3 and image.dtype == np.uint8


ENCODED = {suffix: encode(PHOTO[:48, :64], suffix) for suffix in (".jpg", ".png", ".webp")}


def test_opencv_keeps_to_one_thread():
    assert cv2.getNumThreads() == 1
