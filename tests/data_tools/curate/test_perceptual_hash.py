from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_tools.curate.perceptual_hash import decode, features_of, reduction_for
from tests.data_tools.crawl import pictures
from tests.data_tools.curate.crawled import jpeg, photo, resized


def distance(left: np.ndarray, right: np.ndarray) -> int:
    return (features_of(left).hash ^ features_of(right).hash).bit_count()


def test_copies_are_near_and_others_are_far():
    distances = []
    for seed in range(30):
        picture = photo(seed, 256)
        small = decode(jpeg(resized(picture, 128), 75))
        assert small is not None
        distances.append(distance(picture, small))
        brighter = cv2.convertScaleAbs(picture, alpha=0.9, beta=12)
        distances.append(distance(picture, brighter))
        assert distance(picture, photo(seed + 1000, 256)) > 12
        assert distance(picture, picture[:, ::-1]) > 12, "a mirrored picture is another one"
    assert sum(bits <= 3 for bits in distances) >= 57 and max(distances) <= 6, distances


def test_a_symmetrical_picture_keeps_its_hash():
    """Half of its coefficients are 0: noise must not decide them."""
    half = photo(3, 128)[:, :64]
    whole = np.concatenate([half, half[:, ::-1]], axis=1)
    noise = np.random.default_rng(0).integers(-3, 4, whole.shape)
    noisy = np.clip(whole.astype(int) + noise, 0, 255).astype(np.uint8)
    assert distance(whole, noisy) <= 1


def test_contrast_and_colour():
    flat = np.full((50, 70, 3), (10, 20, 30), np.uint8)
    found = features_of(flat)
    assert (found.blue, found.green, found.red, round(found.grey_std, 3)) == (10, 20, 30, 0)
    halves = np.zeros((40, 40, 3), np.uint8)
    halves[:, 20:] = 100
    assert features_of(halves).grey_std == pytest.approx(50)
    assert 0 <= features_of(photo(1)).hash < 2**64


def test_decoding_as_the_crawl_stores():
    red_and_clear = decode(pictures.transparent_png())
    assert red_and_clear is not None
    assert red_and_clear[20, 10].tolist() == [0, 0, 255]
    assert red_and_clear[20, 50].tolist() == [255, 255, 255]
    upright = decode(pictures.rotated_jpeg())
    assert upright is not None and upright.shape == (40, 60, 3)
    for content in (pictures.png_16_bit(), pictures.palette_png(), pictures.png()):
        image = decode(content)
        assert image is not None and image.shape == (40, 60, 3) and image.dtype == np.uint8
    for content in (b"", b"no image", pictures.jpeg()[:100]):
        assert decode(content) is None


def test_reduction_leaves_enough_pixels():
    assert [reduction_for(*size) for size in ((512, 600), (511, 600), (200, 128), (127, 900))] == [
        8,
        4,
        2,
        1,
    ]
    picture = photo(5, 512)
    small = decode(jpeg(picture), 8)
    assert small is not None and small.shape == (64, 64, 3)
    assert distance(picture, small) <= 2
