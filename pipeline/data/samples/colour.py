"""Colour jitter and grayscale on uint8 pixels, with torchvision's parameters and Pillow's formulas.

Strengths and order as in SimCLR (arXiv 2002.05709): factors of brightness, contrast and saturation
uniform in [1 - s, 1 + s], hue turned by up to s of the circle, the four in random order, then
grayscale.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.config import ColourConfig
from pipeline.data.samples.transforms import SampleRandom

_LEVELS = np.arange(256, dtype=np.float32)
# ITU-R 601-2, as cv2.COLOR_RGB2GRAY and Pillow's "L".
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_HUES = 180
"""OpenCV's uint8 circle of hues: steps of two degrees."""


class ColourAugmentation:
    """Draws from a sample's own random stream; without probabilities it draws nothing."""

    def __init__(self, config: ColourConfig) -> None:
        self._config = config

    def __call__(self, image: np.ndarray, random: SampleRandom) -> np.ndarray:
        """RGB uint8 (height, width, 3) -> the same; may write into `image`."""
        config = self._config
        if config.jitter_probability and random.uniform(0, 1) < config.jitter_probability:
            image = self._jitter(image, random)
        if config.grayscale_probability and random.uniform(0, 1) < config.grayscale_probability:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return image

    def _jitter(self, image: np.ndarray, random: SampleRandom) -> np.ndarray:
        config = self._config
        changes = [
            (change_brightness, 1.0, config.brightness),
            (change_contrast, 1.0, config.contrast),
            (change_saturation, 1.0, config.saturation),
            (turn_hue, 0.0, config.hue),
        ]
        while changes:
            change, middle, strength = changes.pop(random.integer(len(changes)))
            amount = random.uniform(middle - strength, middle + strength)
            if strength:
                image = change(image, amount)
        return image


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, _to_uint8(_LEVELS * factor))


def change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from or towards the mean grey of the image."""
    mean = round(float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]))
    return cv2.LUT(image, _to_uint8(mean + (_LEVELS - mean) * factor))


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from or towards the grey of each pixel."""
    matrix = np.eye(3, dtype=np.float32) * factor + _LUMA * np.float32(1 - factor)
    return cv2.transform(image, matrix)


def turn_hue(image: np.ndarray, share: float) -> np.ndarray:
    """By a share of the circle, -0.5 to 0.5."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    turned = (np.arange(256) + round(share * _HUES)) % _HUES
    channel = np.ascontiguousarray(hsv[..., 0])
    hsv[..., 0] = cv2.LUT(channel, turned.astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _to_uint8(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
