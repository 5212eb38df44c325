"""The random crop has torchvision's distribution; pixels are those of antialiased bicubic."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.transforms import (
    SampleRandom,
    crop_and_resize,
    decode_reduction,
    eval_transform,
    random_crop_box,
)
from tests.pipeline.data.images import encode, psnr, synthetic_photo

SIDES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**63 - 1)


def boxes(width, height, scale_min, count=4000, seed=7):
    return np.array(
        [
            random_crop_box(width, height, scale_min=scale_min, random=SampleRandom(seed, position))
            for position in range(count)
        ]
    )


def restated_boxes(width, height, scale_min, count=4000, seed=11):
    """torchvision's RandomResizedCrop.get_params, restated from its documentation with NumPy's
    generator: area share uniform, log of the ratio uniform, ten tries, then the centre."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        for _ in range(10):
            area = rng.uniform(scale_min, 1) * width * height
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                out.append((rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h))
                break
        else:
            w, h = width, height
            if width / height < 3 / 4:
                h = int(round(width / (3 / 4)))
            elif width / height > 4 / 3:
                w = int(round(height * (4 / 3)))
            out.append(((width - w) // 2, (height - h) // 2, w, h))
    return np.array(out)


def two_sample_ks(a, b):
    """Largest distance of the two empirical distribution functions."""
    values = np.concatenate([a, b])
    ranks_a = np.searchsorted(np.sort(a), values, side="right") / len(a)
    ranks_b = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return np.abs(ranks_a - ranks_b).max()


@pytest.mark.parametrize(
    "width, height, scale_min",
    [(256, 256, 0.9), (400, 300, 0.08), (300, 400, 0.5), (1000, 200, 0.3), (200, 1000, 0.9)],
)
def test_crops_have_torchvisions_distribution(width, height, scale_min):
    ours, restated = boxes(width, height, scale_min), restated_boxes(width, height, scale_min)
    # Kolmogorov-Smirnov at 1e-4, of 25 comparisons in all: sqrt(-ln(5e-5)/2 * 2/4000).
    bound = math.sqrt(-math.log(5e-5) / 4000)
    area = [b[:, 2] * b[:, 3] for b in (ours, restated)]
    ratio = [b[:, 2] / b[:, 3] for b in (ours, restated)]
    assert two_sample_ks(*area) < bound
    assert two_sample_ks(*ratio) < bound
    for column in (0, 1):
        assert two_sample_ks(ours[:, column], restated[:, column]) < bound
    whole = [np.mean((b[:, 2] == width) | (b[:, 3] == height)) for b in (ours, restated)]
    assert abs(whole[0] - whole[1]) < bound


def test_the_comparison_can_fail():
    """The same bound tells scale_min 0.9 from 0.88, so it is not satisfied by anything."""
    bound = math.sqrt(-math.log(5e-5) / 4000)
    ours, other = boxes(400, 300, 0.9), restated_boxes(400, 300, 0.88)
    assert two_sample_ks(ours[:, 2] * ours[:, 3], other[:, 2] * other[:, 3]) > bound


@given(SIDES, SIDES, st.floats(0.05, 1.0), SEEDS, st.integers(0, 10**12))
def test_crops_lie_inside_the_image(width, height, scale_min, seed, position):
    random = SampleRandom(seed, position)
    left, top, w, h = random_crop_box(width, height, scale_min=scale_min, random=random)
    assert w >= 1 and h >= 1 and left >= 0 and top >= 0
    assert left + w <= width and top + h <= height


@given(SIDES, SIDES, st.floats(0.05, 1.0), SEEDS)
def test_a_reduced_image_is_large_enough_for_any_crop(width, height, scale_min, seed):
    image_size = 64
    reduction = decode_reduction(width, height, image_size=image_size, scale_min=scale_min)
    if reduction == 1:
        return
    size = (-(-width // reduction), -(-height // reduction))
    box = random_crop_box(*size, scale_min=scale_min, random=SampleRandom(seed, 0))
    assert min(box[2:]) >= image_size - 1  # the crop's sides are rounded


@pytest.mark.parametrize(
    "size, expected", [((256, 256), 1), ((560, 560), 2), ((4000, 3000), 8), ((5000, 300), 1)]
)
def test_reductions(size, expected):
    assert decode_reduction(*size, image_size=224, scale_min=0.9) == expected


def test_random_numbers_are_keyed_and_uniform():
    def draws(seed, position, count=4):
        random = SampleRandom(seed, position)
        return [random.uniform(0, 1) for _ in range(count)]

    assert draws(1, 5) == draws(1, 5)
    firsts = np.array(
        [draws(seed, position, 1)[0] for seed in range(20) for position in range(500)]
    )
    assert len(set(firsts)) == 10_000
    counts = np.histogram(firsts, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 19 + 5 * math.sqrt(2 * 19)
    stream = np.array(draws(3, 3, 10_000))
    assert abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.05
    integers = [SampleRandom(0, position).integer(3) for position in range(3000)]
    assert min(np.bincount(integers, minlength=3)) > 900 and max(integers) == 2


@pytest.mark.parametrize(
    "shrink, decibels", [(0.5, 38), (1, 42), (1.1, 38), (1.2, 37), (2.2, 37), (5, 37)]
)
def test_crop_is_close_to_pillows_antialiased_bicubic(shrink, decibels):
    side = round(112 * shrink)
    photo = synthetic_photo(3, side + 30, side + 20)
    out = np.empty((3, 112, 112), dtype=np.uint8)
    crop_and_resize(photo, (11, 7, side, side), out)
    reference = Image.fromarray(photo).resize(
        (112, 112), Image.Resampling.BICUBIC, box=(11, 7, 11 + side, 7 + side)
    )
    assert psnr(out.transpose(1, 2, 0), np.asarray(reference)) > decibels


def test_reduced_decode_and_crop_stay_close_to_the_full_way():
    data = encode(synthetic_photo(4, 1100, 900))
    scale = decode_reduction(1100, 900, image_size=112, scale_min=1.0)
    assert scale == 4
    small = decode_rgb(data, lambda width, height: scale)
    out = np.empty((3, 112, 112), dtype=np.uint8)
    crop_and_resize(small, (0, 0, small.shape[1], small.shape[0]), out)
    with Image.open(io.BytesIO(data)) as image:
        reference = image.resize((112, 112), Image.Resampling.BICUBIC)
    assert psnr(out.transpose(1, 2, 0), np.asarray(reference)) > 30


def clip_reference(data, image_size):
    """CLIP's transform by its published steps: Resize (short side, bicubic), CenterCrop, RGB."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if width <= height:
        size = (image_size, int(image_size * height / width))
    else:
        size = (int(image_size * width / height), image_size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left = int(round((size[0] - image_size) / 2.0))
    top = int(round((size[1] - image_size) / 2.0))
    return np.asarray(image)[top : top + image_size, left : left + image_size]


@given(st.integers(20, 150), st.integers(20, 150), st.integers(8, 96))
def test_eval_transform_is_clips(width, height, image_size):
    data = encode(PHOTO[:height, :width], ".png")
    expected = clip_reference(data, image_size)
    assert np.array_equal(eval_transform(data, image_size).transpose(1, 2, 0), expected)


PHOTO = synthetic_photo(5, 150, 150)


def test_eval_transform_refuses_a_cut_image():
    with pytest.raises((OSError, ValueError)):
        eval_transform(encode(PHOTO)[:-900], 32)
