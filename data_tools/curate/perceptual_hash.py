"""A 64-bit perceptual hash, by which copies of a picture are found after resizing and
recompression.

The picture is reduced to 32 x 32 grey levels and transformed by an orthonormal discrete cosine
transform. Each of the 64 lowest frequencies, without the mean, gives one bit: is the coefficient
above the median of the 64, and above 8? This changes the known pHash (an 8 x 8 block, the median
alone) in two ways. First, the frequencies are the lowest by distance from the origin, so that
purely horizontal and vertical ones are among them. Second, a symmetrical picture has half of its
coefficients at 0, where the median alone turns noise into bits: of 1,476 icons that were resized to
3/4 and saved as JPEG of quality 75, 89 % stay within 3 bits by the median alone, 99.8 % by both.

Mirrored, cropped and rotated copies have other hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32
MIN_COEFFICIENT = 8.0
# Below this standard deviation a picture's hash is noise: such pictures are not compared.
MIN_STD_TO_COMPARE = 2.0
_JPEG = b"\xff\xd8"
_LOWEST = sorted(
    ((u, v) for u in range(SIDE) for v in range(SIDE) if u + v > 0),
    key=lambda place: (place[0] ** 2 + place[1] ** 2, place),
)[:64]
_ROWS, _COLUMNS = (np.array(axis) for axis in zip(*_LOWEST))


@dataclass(frozen=True)
class Features:
    """`hash` has 64 bits; `grey_std` is the standard deviation of the grey levels 0 to 255; the
    colours are means, 0 to 255."""

    hash: int
    grey_std: float
    red: int
    green: int
    blue: int


def features_of(image: np.ndarray) -> Features:
    """Compute hash, contrast and colours of a (height, width, 3) uint8 image with OpenCV's order of
    channels (blue, green, red)."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(small.astype(np.float32))[_ROWS, _COLUMNS]
    bits = waves > max(float(np.median(waves)), MIN_COEFFICIENT)
    blue, green, red = (round(value) for value in cv2.mean(image)[:3])
    packed = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Features(packed, float(cv2.meanStdDev(grey)[1][0, 0]), red, green, blue)


def decode(content: bytes, reduction: int = 1) -> np.ndarray | None:
    """Decode an image file to (height, width, 3) uint8, blue first, turned upright. `reduction` (1,
    2, 4 or 8) divides the sides of a JPEG while it is decoded. Transparent pixels are put
    on white, as the crawl does. None if the file is no image."""
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    if not content:
        return None
    raw = np.frombuffer(content, np.uint8)
    try:
        if not content.startswith(_JPEG):
            full = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
            if full is not None and full.shape[2:] == (4,) and full.dtype == np.uint8:
                opacity = full[:, :, 3:].astype(np.float32) / 255
                return np.rint(full[:, :, :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
        return cv2.imdecode(raw, flags[reduction])
    except cv2.error:  # more pixels than OpenCV accepts
        return None


def reduction_for(width: int, height: int) -> int:
    """Return the largest reduction that leaves 64 pixels of the shorter side, twice what is
    hashed."""
    for reduction in (8, 4, 2):
        if min(width, height) // reduction >= 2 * SIDE:
            return reduction
    return 1
