"""Colour changes are Pillow's to a grey level or two, keyed by position, drawn only if asked."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from pipeline.config import ColourConfig
from pipeline.data.samples.colour import (
    ColourAugmentation,
    change_brightness,
    change_contrast,
    change_saturation,
    turn_hue,
)
from pipeline.data.samples.transforms import SampleRandom
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.loading import equal, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards

PHOTO = synthetic_photo(1, 96, 80)


@pytest.mark.parametrize("factor", [0.0, 0.68, 1.0, 1.32])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (change_brightness, ImageEnhance.Brightness),
        (change_contrast, ImageEnhance.Contrast),
        (change_saturation, ImageEnhance.Color),
    ],
)
def test_factors_are_pillows(ours, theirs, factor):
    expected = np.asarray(theirs(Image.fromarray(PHOTO)).enhance(factor))
    assert np.abs(ours(PHOTO, factor).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("share", [-0.5, -0.08, 0.0, 0.05, 0.5])
def test_hue_is_turned_and_nothing_else(share):
    turned = turn_hue(PHOTO, share)
    for y, x in [(3, 5), (40, 50), (70, 90), (20, 10)]:
        before = colorsys.rgb_to_hsv(*(PHOTO[y, x] / 255))
        expected = np.array(colorsys.hsv_to_rgb((before[0] + share) % 1, *before[1:])) * 255
        # Hue in steps of two degrees of 8-bit colours: four levels of a saturated pixel.
        assert np.abs(turned[y, x] - expected).max() <= 5


def test_without_probabilities_nothing_is_drawn():
    random, untouched = SampleRandom(0, 0), SampleRandom(0, 0)
    assert ColourAugmentation(ColourConfig())(PHOTO, random) is PHOTO
    assert random.uniform(0, 1) == untouched.uniform(0, 1)


def test_shares_of_jittered_and_grey_samples():
    augment = ColourAugmentation(ColourConfig(jitter_probability=0.8, grayscale_probability=0.2))
    small = PHOTO[:8, :8]
    changed = grey = 0
    for position in range(2000):
        image = augment(small.copy(), SampleRandom(5, position))
        assert image.shape == small.shape and image.dtype == np.uint8
        is_grey = bool(
            (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all()
        )
        grey += is_grey
        changed += is_grey or not np.array_equal(image, small)
    # Five standard deviations.
    assert abs(grey - 400) < 90
    assert abs(changed - 2000 * (1 - 0.2 * 0.8)) < 85


def test_one_strength_alone():
    config = ColourConfig(
        jitter_probability=1.0, brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0
    )
    means = [
        ColourAugmentation(config)(np.full((4, 4, 3), 100, np.uint8), SampleRandom(0, position))
        .mean()
        .item()
        for position in range(500)
    ]
    assert 50 <= min(means) < 55 and 145 < max(means) <= 150 and abs(np.mean(means) - 100) < 7


def test_colours_are_keyed_by_position(tmp_path):
    samples = make_samples(16, lambda number: encode(synthetic_photo(number, 32, 32)))
    path = write_shards(tmp_path, samples, 16)
    colour = ColourConfig(jitter_probability=1.0, grayscale_probability=0.1)
    plain = read_batches(path, 2)
    first = read_batches(path, 2, colour=colour)
    again = read_batches(path, 2, colour=colour, num_workers=3)
    assert all(equal(a, b) for a, b in zip(first, again))
    assert first[0].keys == plain[0].keys and not torch.equal(first[0].images, plain[0].images)
    next_epoch = read_batches(path, 2, samples_seen=16, colour=colour)
    ours = {key: image for batch in first for key, image in zip(batch.keys, batch.images)}
    assert any(
        not torch.equal(ours[key], image)
        for batch in next_epoch
        for key, image in zip(batch.keys, batch.images)
    )
