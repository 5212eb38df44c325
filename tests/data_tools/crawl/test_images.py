from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools.crawl.images import ImageLimits, ImageRefused, check_image
from tests.data_tools.crawl import pictures

LIMITS = ImageLimits(max_pixels=1_000_000, min_side=1, max_side=20_000, max_aspect=20.0)


def as_img2dataset_sees_it(content: bytes) -> np.ndarray:
    """uint8, (height, width, 3) in RGB order; fails on anything img2dataset would damage."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert values is not None and values.dtype == np.uint8 and values.ndim == 3
    assert values.shape[2] == 3, "an alpha channel was left"
    return values[:, :, ::-1]


@pytest.mark.parametrize(
    "content",
    [
        pictures.jpeg(),
        pictures.png(),
        pictures.encode(pictures.gradient().convert("L"), "JPEG"),
        pictures.encode(pictures.gradient().convert("L"), "PNG"),
        pictures.encode(pictures.gradient(), "WEBP"),
        pictures.encode(pictures.gradient(), "JPEG", progressive=True),
    ],
    ids=["jpeg", "png", "grey_jpeg", "grey_png", "webp", "progressive_jpeg"],
)
def test_plain_images_pass_byte_for_byte(content):
    checked = check_image(content, LIMITS)
    assert checked.content == content
    assert (checked.width, checked.height) == (60, 40)


def test_16_bit_grey_keeps_its_brightness():
    """img2dataset alone stores 255 white here and counts a success."""
    values = as_img2dataset_sees_it(check_image(pictures.png_16_bit(100), LIMITS).content)
    assert np.all(values == 100)


def test_16_bit_rgb_keeps_its_colour():
    values = as_img2dataset_sees_it(check_image(pictures.rgb_png_16_bit(), LIMITS).content)
    assert np.all(values == [100, 150, 200])


def test_float_tiff_is_not_black():
    values = as_img2dataset_sees_it(check_image(pictures.float_tiff(), LIMITS).content)
    assert np.all(np.abs(values.astype(int) - 128) <= 1)


def test_float_of_unknown_scale_is_stretched():
    source = np.linspace(-3, 9000, 2400, dtype=np.float32).reshape(40, 60)
    checked = check_image(pictures.encode(Image.fromarray(source), "TIFF"), LIMITS)
    values = as_img2dataset_sees_it(checked.content)[:, :, 0]
    assert values[0, 0] == 0 and values[-1, -1] == 255
    assert np.all(np.diff(values.reshape(-1).astype(int)) >= 0)


def test_exif_orientation_is_applied():
    checked = check_image(pictures.rotated_jpeg(), LIMITS)
    assert (checked.width, checked.height) == (60, 40)
    upright = np.asarray(pictures.gradient()).astype(int)
    assert np.abs(as_img2dataset_sees_it(checked.content) - upright).mean() < 3


def test_exif_behind_the_pixels_of_a_png_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = pictures.encode(pictures.gradient(), "PNG", exif=exif)
    checked = check_image(content, LIMITS)
    assert (checked.width, checked.height) == (40, 60)


def test_cmyk_becomes_rgb():
    values = as_img2dataset_sees_it(check_image(pictures.cmyk_jpeg(), LIMITS).content)
    original = np.asarray(pictures.gradient().convert("CMYK").convert("RGB")).astype(int)
    assert np.abs(values - original).mean() < 6


@pytest.mark.parametrize("content", [pictures.transparent_png(), pictures.palette_png()])
def test_transparency_becomes_white(content):
    values = as_img2dataset_sees_it(check_image(content, LIMITS).content)
    assert values[20, 5, 0] >= 200 and values[20, 5, 1] <= 10
    assert np.all(values[:, 31:] == 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    values = as_img2dataset_sees_it(check_image(pictures.animated(kind), LIMITS).content)
    assert values.shape == (40, 60, 3)
    assert values[20, 30, 0] > 240 and values[20, 30, 2] < 15


def test_grey_with_alpha_bilevel_and_bmp_become_plain():
    for image, kind in (
        (pictures.gradient().convert("LA"), "PNG"),
        (pictures.gradient().convert("1"), "PNG"),
        (pictures.gradient(), "BMP"),
        (pictures.gradient(), "AVIF"),
    ):
        checked = check_image(pictures.encode(image, kind), LIMITS)
        assert as_img2dataset_sees_it(checked.content).shape == (40, 60, 3)


def test_a_bomb_is_refused_by_its_header():
    """144 million pixels would take 432 MB; the file has 1 kB, so nothing was decoded."""
    with pytest.raises(ImageRefused, match="12000x12000") as refusal:
        check_image(pictures.bomb_png(12_000), LIMITS)
    assert refusal.value.status == "rejected:too_many_pixels"


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "starts with b''"),
        (b"<!doctype html><p>", "starts with"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "starts with b'%!PS"),
        (b"%PDF-1.7\n", "starts with"),
    ],
)
def test_what_is_no_image_is_refused(content, detail):
    with pytest.raises(ImageRefused) as refusal:
        check_image(content, LIMITS)
    assert refusal.value.status == "rejected:not_an_image"
    assert detail in refusal.value.detail


def test_a_cut_animation_is_refused_and_not_half_decoded():
    content = pictures.encode(pictures.gradient(300, 200), "GIF")
    with pytest.raises(ImageRefused) as refusal:
        check_image(content[: len(content) // 2], LIMITS)
    assert refusal.value.status == "rejected:not_decodable"


@given(st.binary(max_size=300), st.sampled_from(["jpeg", "png_16_bit", "rotated_jpeg", "bomb_png"]))
def test_hostile_bytes_raise_nothing_but_refusals(noise, kind):
    whole = getattr(pictures, kind)()
    for content in (noise, whole[: len(whole) // 2] + noise, whole[:30] + noise + whole[30:]):
        try:
            checked = check_image(content, LIMITS)
        except ImageRefused:
            continue
        assert checked.width * checked.height <= LIMITS.max_pixels
