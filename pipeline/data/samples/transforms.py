"""Training crop and evaluation transform: RGB pixels of any size -> uint8 (3, image_size,
image_size).

No float leaves the host: normalisation happens on the device, inside the image tower.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from pipeline.data.samples.decode import decode_rgb

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of the random crop; torchvision's and CLIP's."""
_CROP_TRIES = 10

# OpenCV's bicubic has no antialias. Against Pillow's antialiased bicubic (synthetic photographs) it
# is the closer one, 48 to 41 dB, up to a shrink of 1.14; from there INTER_AREA is, 40 to 43 dB, at
# 3.5 times the cost. A 256-pixel image cropped to 224 shrinks by 1.143 at most.
_AREA_FROM_SHRINK = 1.15

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class SampleRandom:
    """A stream of random numbers that depends on (seed, position) only: SplitMix64.

    The position is the sample's place in the run's order, so a resumed run and any number of ranks
    draw the same numbers.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int, position: int) -> None:
        # Seed and position are mixed apart, else (seed, position + 1) would be the stream of (seed
        # + 1, position).
        self._state = self._mix((self._mix(seed & _MASK) + position * _GOLDEN) & _MASK)

    def uniform(self, low: float, high: float) -> float:
        """Uniform on [low, high)."""
        self._state = (self._state + _GOLDEN) & _MASK
        return low + (high - low) * ((self._mix(self._state) >> 11) * 2.0**-53)

    def integer(self, stop: int) -> int:
        """Uniform on 0..stop-1, for stop far below 2**53 (scaling then has no bias to speak of)."""
        return int(self.uniform(0.0, stop))

    @staticmethod
    def _mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        return value ^ (value >> 31)


def random_crop_box(
    width: int, height: int, *, scale_min: float, random: SampleRandom
) -> tuple[int, int, int, int]:
    """(left, top, width, height) in pixels of a crop with torchvision's RandomResizedCrop
    distribution.

    Area: a uniform share in [scale_min, 1] of the image's; width/height: log-uniform in CROP_RATIO;
    place: uniform. After ten draws that do not fit, the largest centred crop whose ratio lies
    within CROP_RATIO.
    """
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(_CROP_TRIES):
        area = width * height * random.uniform(scale_min, 1.0)
        ratio = math.exp(random.uniform(log_low, log_high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = random.integer(height - crop_height + 1)
            left = random.integer(width - crop_width + 1)
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, round(height * CROP_RATIO[1])))
    crop_height = min(height, max(1, round(width / CROP_RATIO[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def decode_reduction(width: int, height: int, *, image_size: int, scale_min: float) -> int:
    """The largest of 8, 4, 2, 1 by which an image can be scaled down so that any crop still has
    image_size pixels a side.
    """
    shortest = min(width, height, math.sqrt(width * height * scale_min * CROP_RATIO[0]))
    for reduction in (8, 4, 2):
        if shortest >= image_size * reduction:
            return reduction
    return 1


def crop_and_resize(image: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray) -> None:
    """Resize a crop of an RGB (height, width, 3) image into `out`, uint8 (3, image_size,
    image_size).
    """
    write_planes(resized_crop(image, box, out.shape[1]), out)


def resized_crop(image: np.ndarray, box: tuple[int, int, int, int], image_size: int) -> np.ndarray:
    """A crop (left, top, width, height) of an RGB image at uint8 (image_size, image_size, 3)."""
    left, top, width, height = box
    shrink = max(width, height) / image_size
    interpolation = cv2.INTER_AREA if shrink >= _AREA_FROM_SHRINK else cv2.INTER_CUBIC
    crop = image[top : top + height, left : left + width]
    return cv2.resize(crop, (image_size, image_size), interpolation=interpolation)


def write_planes(image: np.ndarray, out: np.ndarray) -> None:
    """RGB (size, size, 3) into the planes of `out`, 5 times as fast as a transposing copy."""
    cv2.split(image, list(out))


def eval_transform(data: bytes, image_size: int) -> np.ndarray:
    """Encoded image -> uint8 (3, image_size, image_size): the pixels that training decodes, through
    CLIP's own transform. Evaluation and `pipeline.score` see pictures by it. Raises DecodeError.
    """
    return eval_pixels(decode_rgb(data), image_size)


def eval_pixels(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """RGB uint8 (height, width, 3) -> uint8 (3, image_size, image_size), by the library CLIP used
    (Pillow): short side to image_size by antialiased bicubic, centre crop.
    """
    image = with_short_side(pixels, image_size)
    left, top = (round((side - image_size) / 2) for side in image.size)
    image = image.crop((left, top, left + image_size, top + image_size))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def with_short_side(pixels: np.ndarray, image_size: int) -> Image.Image:
    """RGB uint8 (height, width, 3) at a short side of image_size, before the crop."""
    image = Image.fromarray(pixels)
    width, height = image.size
    short = min(width, height)
    size = (image_size * width // short, image_size * height // short)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
