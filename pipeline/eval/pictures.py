"""Small pictures for the report, as data URIs: the report is one file."""

from __future__ import annotations

import base64

import cv2
from torch import Tensor

_MAX_SIDE = 128


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of 0 .. total - 1 (all, if fewer), at equal distances: the same in every run."""
    count = min(total, count)
    return [number * total // count for number in range(count)]


def data_uri(image: Tensor) -> str:
    """uint8 (3, H, W) RGB -> "data:image/...", no side above 128 pixels."""
    pixels = cv2.cvtColor(image.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2BGR)
    side = max(pixels.shape[:2])
    if side > _MAX_SIDE:
        scale = _MAX_SIDE / side
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    # JPEG smears pictograms of few pixels, and saves nothing on them.
    suffix = "png" if side <= 64 else "jpeg"
    _, encoded = cv2.imencode(f".{suffix}", pixels)
    return f"data:image/{suffix};base64,{base64.b64encode(encoded.tobytes()).decode()}"
