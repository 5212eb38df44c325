"""Pictures with what resizing is tested by: a 1/f spectrum, edges and fine strokes."""

from __future__ import annotations

import cv2
import numpy as np


def synthetic_photo(seed: int, width: int, height: int) -> np.ndarray:
    """RGB uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(width, height)) ** -1.1
    channels = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * rng.random((height, width)))
        noise = np.fft.ifft2(amplitude * phases).real
        channels.append((noise - noise.mean()) / noise.std())
    mixed = 110 + 45 * (0.8 * channels[0][..., None] + 0.3 * np.stack(channels, axis=-1))
    image = np.ascontiguousarray(np.clip(mixed, 0, 255).astype(np.uint8))
    for _ in range(8):
        corners = rng.integers(0, [width, height], (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(image, corners, rng.integers(0, 256, 3).tolist(), cv2.LINE_AA)
    for _ in range(3):
        corner = (int(rng.integers(0, width // 2)), int(rng.integers(20, height)))
        cv2.putText(
            image, "fine strokes", corner, cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255,) * 3, 1, cv2.LINE_AA
        )
    return image


def encode(image: np.ndarray, suffix: str = ".jpg", parameters: tuple[int, ...] = ()) -> bytes:
    """An RGB or grey image in the format of the suffix."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, image, parameters)[1].tobytes()


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Decibels; 40 is an error of 2.5 grey levels RMS."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
