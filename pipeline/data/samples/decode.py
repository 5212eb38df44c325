"""Image bytes -> RGB uint8 pixels, by OpenCV (libjpeg-turbo, outside the interpreter lock)."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_tools.dataset.pictures import DecodeError, read_whole_header, what_it_is

# The loader's workers decode side by side; OpenCV's own threads would only fight with these.
cv2.setNumThreads(0)
# Its warnings name no sample; what cannot be decoded is reported with key and shard by the loader.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# OpenCV's constant for a reduced decode of RGB: the reduced-grayscale flag with the RGB flag
# (reduced-colour means BGR).
_DECODE_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode_rgb(
    data: bytes, reduction: Callable[[int, int], int] = lambda width, height: 1
) -> np.ndarray:
    """Pixels as uint8 (height, width, 3), RGB, rotated as EXIF says; grey, CMYK, palette and 16-bit
    images are converted.

    `reduction(width, height)` chooses the scale of a JPEG: 1, 2, 4 or 8 decodes it to about 1/that
    size, at a lower cost (libjpeg scales in the frequency domain). Alpha is dropped. Raises
    DecodeError for bytes that are no image, an image cut short, or more than MAX_IMAGE_PIXELS.
    """
    header = read_whole_header(data)
    scale = 1
    if header is not None:
        scale = reduction(header.width, header.height)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS[scale])
    except cv2.error as error:
        raise DecodeError(f"OpenCV: {error.err or error}") from error
    if image is None:
        what = what_it_is(data)
        raise DecodeError("not an image that OpenCV can decode" + (f": {what}" if what else ""))
    return image
