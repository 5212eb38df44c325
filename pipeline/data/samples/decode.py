"""Image bytes -> RGB uint8 pixels, by OpenCV (libjpeg-turbo, outside the interpreter lock)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# The loader's workers decode side by side; OpenCV's own threads would only fight with these.
cv2.setNumThreads(0)
# Its warnings name no sample; what cannot be decoded is reported with key and shard by the loader.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# A decoded image of this size is 300 MB. Larger headers are refused before anything is allocated: a
# small file can claim gigapixels.
MAX_IMAGE_PIXELS = 100_000_000

# OpenCV's constant for a reduced decode of RGB: the reduced-grayscale flag with the RGB flag
# (reduced-colour means BGR).
_DECODE_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class DecodeError(ValueError):
    """The bytes are not an image that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size in pixels as stored (before any EXIF rotation), and where the first scan starts in the
    file.
    """

    width: int
    height: int
    scan_offset: int


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Size from the frame header, without decoding; None if the bytes are no JPEG. DecodeError if
    it is cut or malformed.
    """
    if data[:2] != b"\xff\xd8":
        return None
    offset, size = 2, None
    while offset + 4 <= len(data):
        if data[offset] != 0xFF:
            raise DecodeError(f"JPEG with no marker at byte {offset}")
        marker = data[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        # SOF0..SOF15 hold the size; C4, C8 and CC in their midst are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = data[offset + 5 : offset + 9]
        if marker == 0xDA and size is not None and len(size) == 4:
            width, height = int.from_bytes(size[2:], "big"), int.from_bytes(size[:2], "big")
            return JpegHeader(width, height, offset)
        offset += 2 + length
    raise DecodeError("JPEG ends within its header")


def decode_rgb(
    data: bytes, reduction: Callable[[int, int], int] = lambda width, height: 1
) -> np.ndarray:
    """Pixels as uint8 (height, width, 3), RGB, rotated as EXIF says; grey, CMYK, palette and 16-bit
    images are converted.

    `reduction(width, height)` chooses the scale of a JPEG: 1, 2, 4 or 8 decodes it to about 1/that
    size, at a lower cost (libjpeg scales in the frequency domain). Alpha is dropped. Raises
    DecodeError for bytes that are no image, an image cut short, or more than MAX_IMAGE_PIXELS.
    """
    if not data:
        raise DecodeError("zero bytes")
    header = read_jpeg_header(data)
    scale = 1
    if header is not None:
        if header.width * header.height > MAX_IMAGE_PIXELS:
            raise DecodeError(
                f"{header.width} x {header.height} pixels, over the limit of {MAX_IMAGE_PIXELS}"
            )
        # libjpeg fills a file cut short with grey and only warns. An end marker cannot occur inside
        # a scan, so its absence after the scan's start shows the cut; it is looked for from the
        # end, where it normally is.
        if data.rfind(b"\xff\xd9", header.scan_offset) < 0:
            raise DecodeError("JPEG is cut short: no end marker")
        scale = reduction(header.width, header.height)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS[scale])
    except cv2.error as error:
        raise DecodeError(f"OpenCV: {error.err or error}") from error
    if image is None:
        raise DecodeError("not an image that OpenCV can decode")
    return image
